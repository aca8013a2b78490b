"""Finite grammars: JSON schemas with finitely many answers, as tries of the tokenizer's tokens.

A decision of an agent is one of some dozens of JSON texts. Serving walks the trie: a token with one legal continuation is forced
(probability 1); elsewhere the distribution is the softmax over the legal tokens alone. Training uses exactly that distribution. Open
strings, arrays, references and optional properties are deliberately not supported: their languages are not finite or not small.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import UsageError
from babylon_rl.models.encoding import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LANGUAGE_LIMIT = 2000
LANGUAGE_CHARACTERS = 1_000_000  # of all answers of an object
# x-guidance says to vLLM which blanks an answer has.
_ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "x-guidance"}
_KEYWORDS = {"anyOf", "const", "enum", "type", "properties", "required", "additionalProperties"}


@dataclass(eq=False)
class Trie:
    """Trie node: token id to next node; a leaf follows the end token."""

    children: dict[int, "Trie"] = field(default_factory=dict)

    @cached_property
    def legal(self) -> tuple[int, ...]:
        """Legal next tokens, ascending; call it on a complete trie."""
        return tuple(sorted(self.children))


@dataclass(frozen=True, eq=False)
class Grammar:
    """Texts allowed by a schema, their tokens (end token included), and their trie."""

    texts: tuple[str, ...]
    tokens: dict[str, tuple[int, ...]]
    trie: Trie

    def begins(self, tokens: Sequence[int]) -> bool:
        """True if some answer begins with these tokens."""
        return bool(tokens) and any(answer[: len(tokens)] == tokens for answer in self.tokens.values())

    def legal_t(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the legal tokens at the place of each of T response tokens."""
        node, legal = self.trie, []
        for token in tokens:
            legal.append(node.legal)
            if token not in node.children:
                raise UsageError(f"Token {token} is not legal there: the answer is not in the grammar's language.")
            node = node.children[token]
        return legal


def compile_grammar(response_format: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Grammar:
    """Compile an OpenAI ``response_format`` of type json_schema; results are cached.

    Raises:
        UsageError: another type, a schema that is not finite or none at all, or one with more than ``LANGUAGE_LIMIT`` answers.
    """
    try:
        return _compile(json.dumps(response_format), tokenizer)
    except RecursionError:
        raise UsageError("response_format is nested too deeply.") from None


def language(schema: dict[str, Any]) -> tuple[str, ...]:
    """List every text of a finite schema in its order, as ``json.dumps`` writes it. Raises UsageError as ``compile_grammar``."""
    return tuple(dict.fromkeys(_texts(schema, "schema")))


@lru_cache(maxsize=512)
def _compile(text: str, tokenizer: "PreTrainedTokenizerBase") -> Grammar:
    response_format = json.loads(text)
    named = response_format.get("json_schema") if isinstance(response_format, dict) else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict) or response_format.get("type") != "json_schema":
        raise UsageError('response_format must be {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.')
    texts = language(schema)
    if tokenizer.eos_token_id is None:
        raise UsageError("The tokenizer has no end token: an answer under a grammar cannot end.")
    # Of each text only the tokenizer's own split is legal, which is the one that training uses.
    tokens = {answer: (*encode_text(tokenizer, answer), int(tokenizer.eos_token_id)) for answer in texts}
    # All texts share one trie, so a prefix determines the legal tokens.
    root = Trie()
    for sequence in tokens.values():
        node = root
        for token in sequence:
            node = node.children.setdefault(token, Trie())
    return Grammar(texts, tokens, root)


def _texts(schema: Any, where: str) -> list[str]:
    if not isinstance(schema, dict):
        raise UsageError(f"{where} is not a JSON schema object.")
    unknown = set(schema) - _KEYWORDS - _ANNOTATIONS
    if unknown:
        names = ", ".join(sorted(unknown))
        raise UsageError(f"{where} uses {names}: only finite schemas are served (anyOf, const, enum, boolean, null, objects of these).")
    if "anyOf" in schema:
        texts = list[str]()
        for index, part in enumerate(_values(schema, "anyOf", where)):
            texts += _texts(part, f"{where}.anyOf[{index}]")
            _check_size(len(texts), where)
        return texts
    if "const" in schema:
        return [_scalar(schema["const"], where)]
    if "enum" in schema:
        return [_scalar(value, where) for value in _values(schema, "enum", where)]
    match schema.get("type"):
        case "boolean":
            return ["true", "false"]
        case "null":
            return ["null"]
        case "object":
            return _objects(schema, where)
    raise UsageError(f"{where} allows any {schema.get('type', 'value')}: name the values with enum or const.")


def _objects(schema: dict[str, Any], where: str) -> list[str]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise UsageError(f"{where}: properties is an object of schemas, and required a list of their names.")
    optional = [name for name in properties if name not in required]
    if optional:
        raise UsageError(f"{where}: {', '.join(optional)} must be in required: optional properties are not served.")
    # The product is checked before it is built: it may be huge.
    parts = {name: _texts(value, f"{where}.{name}") for name, value in properties.items()}
    answers = prod(len(values) for values in parts.values())
    _check_size(answers, where)
    if answers * sum(max(map(len, values)) + len(name) for name, values in parts.items()) > LANGUAGE_CHARACTERS:
        raise UsageError(f"{where} has answers of more than {LANGUAGE_CHARACTERS:,} characters together.")
    named = [[f"{json.dumps(name)}: {value}" for value in values] for name, values in parts.items()]
    return ["{" + ", ".join(fields) + "}" for fields in product(*named)]


def _values(schema: dict[str, Any], name: str, where: str) -> list[Any]:
    values = schema[name]
    if not isinstance(values, list):
        raise UsageError(f"{where}.{name} is not a list.")
    _check_size(len(values), where)
    return values


def _scalar(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str | int | float):
        raise UsageError(f"{where}: a const or enum value must be a string, a number, a boolean or null.")
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UsageError(f"{where}: {value} is not a JSON number.") from error


def _check_size(answers: int, where: str) -> None:
    if not answers:
        raise UsageError(f"{where} allows nothing.")
    if answers > LANGUAGE_LIMIT:
        raise UsageError(f"{where} allows {answers:,} answers or more; at most {LANGUAGE_LIMIT:,} are served.")
