import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import UsageError
from babylon_rl.models.grammar import LANGUAGE_LIMIT, compile_grammar, language


def wrap(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_a_trade_schema_is_its_json_texts_in_property_order(trade_format: dict[str, Any]) -> None:
    texts = language(trade_format["json_schema"]["schema"])
    assert texts[0] == '{"action": "hold"}'
    assert texts[1] == '{"action": "buy", "market": "OPENLIE"}'
    assert len(texts) == 7


@pytest.mark.parametrize("name", ["title", "description", "$schema", "x-guidance"])
def test_what_only_describes_a_schema_changes_no_text(trade_format: dict[str, Any], name: str) -> None:
    schema = trade_format["json_schema"]["schema"]
    assert language(schema | {name: {"whitespace_flexible": False}}) == language(schema)


def test_numbers_booleans_null_and_nested_objects_are_written_as_json_dumps_writes_them() -> None:
    inner = {"type": "object", "properties": {"n": {"enum": [1, 2.5]}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}
    texts = language({"type": "object", "properties": {"é": inner, "x": {"type": "null"}}, "required": ["é", "x"]})
    assert texts[0] == json.dumps({"é": {"n": 1, "ok": True}, "x": None})
    assert len(texts) == 4


def test_tokens_are_the_tokenizers_own_and_end_with_the_end_token(trade_format: dict[str, Any], tokenizer: Any) -> None:
    grammar = compile_grammar(trade_format, tokenizer)
    for text in grammar.texts:
        assert grammar.tokens[text] == (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)


def test_every_token_of_a_text_is_legal_and_nothing_follows_its_end(trade_format: dict[str, Any], tokenizer: Any) -> None:
    grammar = compile_grammar(trade_format, tokenizer)
    for tokens in grammar.tokens.values():
        node = grammar.trie
        for token, legal in zip(tokens, grammar.legal_t(tokens), strict=True):
            assert token in legal
            node = node.children[token]
        assert node.legal == ()


def test_the_number_of_choices_tells_the_texts_apart(trade_format: dict[str, Any], tokenizer: Any) -> None:
    grammar = compile_grammar(trade_format, tokenizer)
    hold = grammar.tokens['{"action": "hold"}']
    assert [len(legal) for legal in grammar.legal_t(hold) if len(legal) > 1] == [3]


@given(words=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True))
def test_walking_the_trie_reaches_exactly_the_language(words: list[str], tokenizer: Any) -> None:
    grammar = compile_grammar(wrap({"enum": words}), tokenizer)
    ends = 0
    stack = [grammar.trie]
    while stack:
        node = stack.pop()
        ends += not node.children
        stack += node.children.values()
    assert ends == len(set(grammar.tokens.values())) == len(words)


def test_the_same_format_gives_the_same_object_and_another_order_another(tokenizer: Any) -> None:
    one = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    other = {"type": "object", "properties": {"b": {"const": 2}, "a": {"const": 1}}, "required": ["a", "b"]}
    assert compile_grammar(wrap(one), tokenizer) is compile_grammar(json.loads(json.dumps(wrap(one))), tokenizer)
    assert compile_grammar(wrap(other), tokenizer).texts == ('{"b": 2, "a": 1}',)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string"}, "any string"),
        ({"type": "array", "items": {"const": 1}}, "uses items"),
        ({"$ref": "#/x"}, r"uses \$ref"),
        ({"type": "object", "properties": {"a": {"const": 1}}}, "must be in required"),
        ({"enum": []}, "allows nothing"),
        ({"enum": [[1]]}, "must be a string"),
        ({"const": float("nan")}, "not a JSON number"),
        ({"enum": list(range(LANGUAGE_LIMIT + 1))}, "2,001 answers"),
        ({"anyOf": [True]}, "not a JSON schema"),
    ],
)
def test_a_schema_that_is_not_finite_or_too_large_is_refused_in_words(schema: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=said):
        compile_grammar(wrap(schema), tokenizer)


def test_a_product_that_explodes_is_refused_before_it_is_built(tokenizer: Any) -> None:
    properties = {f"p{n}": {"enum": list(range(100))} for n in range(20)}
    with pytest.raises(UsageError, match="at most 2,000"):
        compile_grammar(wrap({"type": "object", "properties": properties, "required": list(properties)}), tokenizer)


@pytest.mark.parametrize("response_format", [{"type": "json_object"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}])
def test_another_kind_of_response_format_is_refused(response_format: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="response_format must be"):
        compile_grammar(response_format, tokenizer)
