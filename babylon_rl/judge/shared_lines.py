"""Shared lines: lines shown to several agents, numbered and sent once per request.

Prompts are split into lines, and lines of JSON into their entries, because markets and stocks repeat while balances do not.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_LEAST = 24  # characters that are worth a number
_JSON_LINE = 60
_MOST_DEEP = 8
_LONGEST_BITS = 256
_REFERENCE = re.compile(r"\[(\d{1,6})\]")


def pieces(text: str) -> list[str]:
    """Split a prompt into lines, and JSON lines into entries.

    A line that is a JSON list gives one piece per entry, a JSON object one piece.
    """
    return [piece for line in text.splitlines() if line.strip() for piece in _entries(line.strip())]


@functools.lru_cache(maxsize=4096)
def _entries(line: str) -> tuple[str, ...]:
    if len(line) < _JSON_LINE or line[0] not in "[{":
        return (line,)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return (line,)
    return tuple(map(plain, value)) if isinstance(value, list) else (plain(value),)


def plain(value: Any, deep: int = _MOST_DEEP) -> str:
    """A JSON value in few characters: ``key=value`` separated by blanks, numbers in six digits.

    Levels below ``deep`` are left out.
    """
    if isinstance(value, dict):
        return " ".join(f"{key}={_inner(entry, deep)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(_inner(entry, deep) for entry in value)
    return _scalar(value)


def _inner(value: Any, deep: int) -> str:
    if not isinstance(value, dict | list):
        return _scalar(value)
    inside = plain(value, deep - 1) if deep > 0 else "…"
    return f"{{{inside}}}" if isinstance(value, dict) else f"[{inside}]"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _LONGEST_BITS:
        return "a very large number"
    return str(value)


@dataclass
class SharedLines:
    """Lines of a group that occur more than once, numbered in order of first occurrence."""

    numbers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[str], most_tokens: int, count: Callable[[str], int]) -> "SharedLines":
        """Select the lines that save most when numbered, up to ``most_tokens`` tokens."""
        uses = Counter(lines)
        worth = [line for line, times in uses.items() if times > 1 and len(line) >= _LEAST]
        # greedy by characters saved; the line itself breaks ties, so the result is deterministic
        ranked = sorted(worth, key=lambda line: (-(uses[line] - 1) * len(line), line))
        left, kept = most_tokens, set[str]()
        for line in ranked:
            cost = count(line) + 4
            if cost <= left:
                left -= cost
                kept.add(line)
        return cls({line: number for number, line in enumerate((line for line in uses if line in kept), 1)})

    def written(self, line: str) -> str:
        """The line's number if it is shared, else the line."""
        number = self.numbers.get(line)
        return line if number is None else f"[{number}]"

    def text(self, shown: Iterable[str]) -> str:
        """The numbered lines that some shown texts refer to, one per line."""
        return named_lines("\n".join(f"[{number}] {line}" for line, number in self.numbers.items()), shown)


def named_lines(common: str, shown: Iterable[str]) -> str:
    """The lines of ``common`` (numbered, one per line) that some shown texts refer to."""
    named = {number for text in shown for number in _REFERENCE.findall(text)}
    return "\n".join(line for line in common.splitlines() if (own := _REFERENCE.match(line)) is not None and own[1] in named)
