"""The tolerant decoder of JSON."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.tolerant_json import NotJson, joined, read_exactly, read_json
from babylon_rl_tests.fuzz.inputs import CUTS, TEXTS, corpus, halves, odd_bytes
from babylon_rl_tests.repeatable import repeatable

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def test_every_kept_input_is_read_or_refused_with_a_reason() -> None:
    for raw in corpus("json"):
        check(raw)


@repeatable(200)
@given(odd_bytes("json"))
def test_any_bytes_are_read_or_refused_with_a_reason(raw: bytes) -> None:
    check(raw)


def check(raw: bytes) -> None:
    for read in (read_json, lambda given: read_json(given.decode("utf-8", "surrogateescape")), lambda given: read_exactly(given)[0]):
        try:
            value = read(raw)
        except NotJson as refused:
            assert str(refused)
        else:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    try:
        json.dumps(read_json(raw, halves=True), allow_nan=False)
    except NotJson as refused:
        assert str(refused)


@repeatable(200)
@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_json_is_read_as_it_was_written(value: Any, escaped: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert read_json(raw) == value and read_json(b"\xef\xbb\xbf" + raw) == value
    assert read_exactly(raw) == (value, raw)


@repeatable(200)
@given(TEXTS, CUTS)
def test_a_text_in_pieces_is_the_text_wherever_a_character_is_cut(text: str, cuts: list[int]) -> None:
    read = ""
    for piece in halves(text, cuts):
        read = joined(read, read_json(piece.encode(), halves=True))
    assert read == text
