"""Tokenization with a cache of lines.

Agents of a tick see the same markets and news, so their texts differ in a line or two. A tokenizer whose words end at every line
(byte-level BPE with GPT-2's pattern, as in the packaged base) gives a text the tokens of its lines in sequence, so a known line is not
tokenized again. Other tokenizers get the whole text.
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
    """Encode a text, without special tokens around it."""
    if not _ends_words_at_lines(tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False))
    tokens: list[int] = []
    for line in _CUT.split(text):
        tokens += _kept(tokenizer, line) if len(line) <= LONGEST_KEPT else tokenizer.encode(line, add_special_tokens=False)
    return tokens


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
