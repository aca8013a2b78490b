"""Schemas of answers, as the model server and the trainer compile them."""

import json

from hypothesis import given

from babylon_rl.errors import UsageError
from babylon_rl.models.grammar import LANGUAGE_CHARACTERS, LANGUAGE_LIMIT, compile_grammar
from babylon_rl.tolerant_json import NotJson, read_json
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.tiny_tokenizer import make_tokenizer

TOKENIZER = make_tokenizer()


def check(raw: bytes) -> None:
    """A schema is refused with a sentence, or has some answers, all of them JSON."""
    try:
        value = read_json(raw)
    except NotJson:
        return
    for asked in (value, {"type": "json_schema", "json_schema": {"schema": value}}):
        try:
            grammar = compile_grammar(asked, TOKENIZER)
        except UsageError as refused:
            assert str(refused)
            continue
        assert 0 < len(grammar.texts) <= LANGUAGE_LIMIT and sum(map(len, grammar.texts)) <= max(LANGUAGE_CHARACTERS, 8 * len(raw))
        for text, tokens in grammar.tokens.items():
            json.loads(text)
            assert len(grammar.legal_t(tokens)) == len(tokens)


def test_every_kept_schema_is_compiled_or_refused_with_a_sentence() -> None:
    for raw in corpus("schemas"):
        check(raw)


@repeatable(200)
@given(odd_bytes("schemas"))
def test_any_schema_is_compiled_or_refused_with_a_sentence(raw: bytes) -> None:
    check(raw)
