"""The decoder of JSON from elsewhere."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.tolerant_json import NotJson, joined, read_exactly, read_json, whole_text
from babylon_rl_tests.repeatable import repeatable

MOST = sys.float_info.max


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": NaN}', {"a": None}), (b'{"a": -Infinity}', {"a": -MOST}), (b'{"a": Infinity}', {"a": MOST}),
        (b'{"a": 1e999}', {"a": MOST}),
        (b'{"a": -1e999}', {"a": -MOST}), (b"1" * 5000, MOST), (b"12345678901234567890123", 12345678901234567890123),
        (rb'{"a": "up \ud83d"}', {"a": "up \ufffd"}), (rb'{"a": "\ude00 up"}', {"a": "\ufffd up"}),
        (rb'{"a": "\ud83d\ude00"}', {"a": "😀"}),
        (rb'{"\ud83d": [NaN, "\\ud83d"]}', {"\ufffd": [None, "\\ud83d"]}), (b'{"a": "\xed\xa0\xbd"}', {"a": "\ufffd"}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}), (b'\xef\xbb\xbf{"a": 1}', {"a": 1}), (b'{"a": "x\ty"}', {"a": "x\ty"}), (b" null ", None),
        ('{"a": "\ud83d"}', {"a": "\ufffd"}), ('{"a": NaN}', {"a": None}),
    ],
)  # fmt: skip
def test_what_other_programs_write_is_read_and_can_be_written_again(raw: bytes | str, value: Any) -> None:
    assert read_json(raw) == value
    assert json.loads(json.dumps(read_json(raw), allow_nan=False).encode()) == value


def test_halves_of_one_character_meet_in_the_text_that_their_pieces_make() -> None:
    first, second = (read_json(raw, halves=True) for raw in (rb'"up \ud83d"', rb'"\ude00 and \ud83d"'))
    assert joined(first, second) == "up 😀 and \ud83d" and whole_text(joined(first, second)) == "up 😀 and \ufffd"
    assert joined(joined("", first), "") == first and joined(second, "x") == second + "x"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "at byte 1"), (b"", "expecting value at byte 0"), (b'{"a": NaN}', "invalid character at byte 6"),
        (b'{"a": 1} x', "extra data at byte 9"), (b'{"a": "caf\xe9"}', "UTF-8 at byte 10"),
        (b'{"a" 1}', "expecting ':' delimiter at byte 5"),
        (b'{"a": "x\ny"}', "invalid control character at byte 8"), (b"[" * 100_000, "nested too deeply"), (b"\xff", "at byte 0"),
        (rb'{"a": "\ud83d", "b" 1}', "expecting ':' delimiter at byte 20"), ('{"é" 1}'.encode(), "at byte 6"),
    ],
)  # fmt: skip
def test_what_a_client_sends_is_json_or_the_reason_says_at_which_byte_not(raw: bytes, reason: str) -> None:
    with pytest.raises(NotJson, match=reason):
        read_exactly(raw)


def test_a_client_s_half_characters_become_u_fffd_and_all_else_keeps_its_bytes() -> None:
    raw = rb'{"a": "up \ud83d", "b": "\\ud83d \ud83d\ude00", "c": 1.50, "d": 1e-7}'
    assert read_exactly(raw) == (
        {"a": "up \ufffd", "b": "\\ud83d 😀", "c": 1.5, "d": 1e-7},
        rb'{"a": "up \ufffd", "b": "\\ud83d \ud83d\ude00", "c": 1.50, "d": 1e-7}',
    )  # fmt: skip
    assert read_exactly(b'{"a": 1e999}') == ({"a": MOST}, b'{"a": 1e999}')


FRAGMENTS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"NaN",
    b"-Infinity",
    b"1e999",
    rb"\ud83d",
    rb"\ude00",
    b"\\",
    b"\xed\xa0\xbd",
    b"null",
    b" ",
)


@pytest.mark.long
@repeatable(400)
@given(st.binary() | st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=3)).map(b"".join), st.booleans())
def test_any_bytes_are_read_or_refused_with_a_reason(raw: bytes, halves: bool) -> None:
    for read in (lambda: read_json(raw, halves=halves), lambda: read_exactly(raw)[0]):
        try:
            value = read()
        except NotJson as refused:
            assert str(refused)
        else:
            written = json.dumps(value, allow_nan=False)
            assert halves or (written.encode() and json.dumps(value, ensure_ascii=False).encode())
