"""A text's tokens are those that its tokenizer gives the whole of it, whatever is kept of its lines."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from babylon_rl.models.encoding import KEPT_LINES, LONGEST_KEPT, encode_text
from babylon_rl_tests.tiny_tokenizer import SPECIALS, make_tokenizer

TOKENIZER = make_tokenizer()
PIECES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "\u2003",
    "\x1c",
    "\x85",
    "you",
    "'s",
    "ünï",
    "e\u0301",
    "12",
    "...",
    "x" * LONGEST_KEPT,
    *SPECIALS,
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40))
def test_kept_lines_change_no_token(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert encode_text(TOKENIZER, text) == TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)


def spaced() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def whole() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def normalized() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    return tokenizer


def greedy() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("left;", lstrip=True), AddedToken("a\nb")])
    return tokenizer


@pytest.mark.parametrize("make", [spaced, whole, normalized, greedy])
def test_a_tokenizer_whose_words_may_cross_lines_is_given_the_whole_text(make: Any) -> None:
    tokenizer, text = make(), "You are\na\nbuyer.\nleft;Sell\nnow."
    assert encode_text(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


class Counting(PreTrainedTokenizerFast):
    """Counts the characters that it was asked to tokenize."""

    characters = 0

    def encode(self, text: Any, *args: Any, **options: Any) -> list[int]:
        self.characters += len(text)
        return list(super().encode(text, *args, **options))


def test_a_line_that_was_met_before_is_not_tokenized_again() -> None:
    tokenizer = Counting(tokenizer_object=TOKENIZER.backend_tokenizer)
    shown = "".join(f"Market {number} stands still.\n" for number in range(50))
    for agent in range(20):
        encode_text(tokenizer, f"{shown}You: agent {agent}")
    assert len(shown) < tokenizer.characters < 2 * len(shown)
    assert KEPT_LINES * LONGEST_KEPT < 2**21  # characters that are kept at most
