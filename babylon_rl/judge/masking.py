"""Masking of flagged passages, to measure how much they gain an agent at the judge.

An agent's own text is left out as a whole, as its unflagged half may carry the rest of the message; of a prompt only the flagged lines
are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from babylon_rl.judge.context import question_names
from babylon_rl.judge.injection import Flag, find_flags
from babylon_rl.market.window_market import WindowOutcomes

MASK = "[passage left out]"
NAME = "name"  # where a flag of an agent's own name stands


def _as_it_is(text: str) -> str:
    return text


@dataclass
class Screen:
    """Collects flags of the texts shown to a judge, and masks flagged passages if ``masks``.

    Texts are searched as shown, that is after ``rename``.
    """

    masks: bool = False
    rename: Callable[[str], str] = _as_it_is
    flags: list[Flag] = field(default_factory=list)

    def text(self, text: str, where: str) -> str:
        """A text of one author, or the mask in its place."""
        return MASK if self._speaks(self.rename(text), where) and self.masks else text

    def lines(self, lines: Sequence[str], where: str) -> list[str]:
        """Renamed lines of a text by many authors, flagged ones masked.

        One mask stands for all lines where only the whole text is flagged.
        """
        shown = [self.rename(line) for line in lines]
        if not self._speaks("\n".join(shown), where) or not self.masks:
            return shown
        # a message can be spread over lines: search again after masking
        kept = [MASK if _is_spoken(find_flags(line, where)) else line for line in shown]
        return [MASK] if _is_spoken(find_flags("\n".join(kept), where)) else kept

    def value(self, value: Any, where: str) -> Any:
        """A JSON value with its flagged keys and strings masked."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            return [self.value(entry, where) for entry in value]
        if isinstance(value, dict):
            return {self.text(str(key), where): self.value(entry, where) for key, entry in value.items()}
        return value

    def outcomes(self, outcomes: WindowOutcomes) -> WindowOutcomes:
        """An hour's market with flagged names, questions and news masked."""
        names = question_names(outcomes)
        asked = [
            replace(
                one,
                question=self.text(one.question, f"question {names.get(one.market_id, one.market_id)}"),
                news=tuple(self.text(text, "news") for text in one.news),
            )
            for one in outcomes.predictions
        ]
        stocks = [
            replace(one, name=self.text(one.name, f"name of {one.ticker}"), news=tuple(self.text(text, "news") for text in one.news))
            for one in outcomes.stocks
        ]
        return replace(outcomes, predictions=tuple(asked), stocks=tuple(stocks))

    def _speaks(self, shown: str, where: str) -> bool:
        """True for a flagged text; its flags are collected."""
        flags = find_flags(shown, where)
        self.flags += flags
        return _is_spoken(flags)


def _is_spoken(flags: Sequence[Flag]) -> bool:
    """True if a flag is more than length; a long text is cut anyway."""
    return any(flag.kind != "long" for flag in flags)
