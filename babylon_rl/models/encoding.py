"""Texts and prompts as tokens: one encoder for serving and training.

A control token that somebody typed into a text stays text: only the chat template writes control tokens. Otherwise a forged turn would be
read as a real one.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from babylon_rl.chats import plain_messages
from babylon_rl.errors import RequestRefused, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Added tokens of this form steer a model (<think>, [INST]), also where its tokenizer does not call them special.
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_MARKS = range(0xF0000, 0x10FFFE)  # characters for private use


class TemplateRefused(RequestRefused):
    """The chat template of the base cannot render the messages."""


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encode a text, without special tokens around it or in it."""
    # The tokenizer itself leaves special tokens as text; other markup is cut after its first character.
    places = [0, *(found.end() for found in _typed(tokenizer, special=False).finditer(text)), len(text)]
    return [token for first, end in pairwise(places) for token in _encode(tokenizer, text[first:end], True)]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Encode a prompt: the chat template with the opening of the assistant's turn.

    Raises:
        RequestRefused: a message that is no text of a known role.
        TemplateRefused: the template cannot render the chat.
    """
    plain = plain_messages(messages)
    typed = _typed(tokenizer)
    if not any(typed.search(message["content"]) for message in plain):
        return tuple(_encode(tokenizer, _rendered(tokenizer, plain), False))
    # A character that no message holds interrupts typed control tokens, so that those of the template differ from them.
    held = set().union(*(message["content"] for message in plain))
    mark = next(chr(code) for code in _MARKS if chr(code) not in held)
    shown = _rendered(tokenizer, [{**message, "content": typed.sub(rf"\g<0>{mark}", message["content"])} for message in plain])
    tokens: list[int] = []
    ours = ""  # of the template, or text without a typed token: as it would be encoded without them
    for piece in re.split(f"({_alternatives(tokenizer)})", shown):
        if mark in piece:
            tokens += [*_encode(tokenizer, ours, False), *encode_text(tokenizer, piece.replace(mark, ""))]
            ours = ""
        else:
            ours += piece
    return (*tokens, *_encode(tokenizer, ours, False))


def control_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of the tokenizer's special tokens."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


def end_ids(tokenizer: "PreTrainedTokenizerBase", configured: int | Sequence[int] | None = None) -> frozenset[int]:
    """Ids of the tokens that end an answer: the tokenizer's, and those that the generation config names."""
    ids = [configured] if isinstance(configured, int) else configured or []
    return frozenset(int(one) for one in (*ids, tokenizer.eos_token_id) if one is not None)


@lru_cache(maxsize=16)
def _typed(tokenizer: "PreTrainedTokenizerBase", *, special: bool = True) -> re.Pattern[str]:
    """The first character of a control token; ``special`` False: of those alone that are not special tokens."""
    found = _alternatives(tokenizer, special=special)
    return re.compile(f"(?={found}).", re.DOTALL)


@lru_cache(maxsize=16)
def _alternatives(tokenizer: "PreTrainedTokenizerBase", *, special: bool = True) -> str:
    added = tokenizer.added_tokens_decoder.values()
    texts = [token.content for token in added if (token.special and special) or (not token.special and _MARKUP.fullmatch(token.content))]
    # Longest first: of two that begin alike the tokenizer takes the longer one. Without any, a pattern that matches nowhere.
    return "|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or "(?!)"


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, typed: bool) -> list[int]:
    """Encode a text; ``typed``: special tokens in it stay text."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=typed))


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # A base without a template, or one whose template cannot use these messages.
    except (TemplateError, ValueError, TypeError) as refused:
        raise TemplateRefused(f"The chat template refuses the messages: {first_line(refused)}", "messages") from refused
