"""Tokens of texts that repeat each other's lines: agents of a tick are shown the same markets and news, and differ in a line or two.

A tokenizer whose words end at every line (byte-level BPE with GPT-2's pattern, which the packaged base has) gives a text the tokens of
its lines one after the other, so a line that was met before is not tokenized again. Other tokenizers are given the whole text.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT_LINES = 4096
LONGEST_KEPT = 256  # characters: what is kept stays within some MB whatever agents write
# A run of whitespace is one word with its line break, so a text is cut only where the break stands alone.
_CUT = re.compile(r"(?<=\S\n)(?=\S)")


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text, without special tokens around it."""
    if not _ends_words_at_lines(tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False))
    found: list[int] = []
    for line in _CUT.split(text):
        found += _kept(tokenizer, line) if len(line) <= LONGEST_KEPT else tokenizer.encode(line, add_special_tokens=False)
    return found


@lru_cache(maxsize=KEPT_LINES)
def _kept(tokenizer: "PreTrainedTokenizerBase", line: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(line, add_special_tokens=False))


@lru_cache(maxsize=8)
def _ends_words_at_lines(tokenizer: "PreTrainedTokenizerBase") -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = getattr(backend, "pre_tokenizer", None)
    if backend is None or backend.normalizer is not None or not isinstance(words, ByteLevel):
        return False
    cut_in_words = any(token.lstrip or "\n" in token.content for token in tokenizer.added_tokens_decoder.values())
    return words.use_regex and not words.add_prefix_space and not cut_in_words
