"""Content versions: the hash of canonical JSON, in however many parts it is hashed."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.versions import content_version

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
ROWS = st.lists(st.lists(VALUES, max_size=3), max_size=3).map(lambda rows: rows * 60)  # below and above what is encoded at once


@given(st.lists(VALUES | ROWS | st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=4) | VALUES)
def test_a_version_is_the_hash_of_the_whole_text(content: Any) -> None:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert content_version(content) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_tuples_are_lists_and_a_number_that_is_none_is_refused() -> None:
    assert content_version((1, ("a", ()))) == content_version([1, ["a", []]])
    with pytest.raises(ValueError):
        content_version([1, [float("nan")]])
