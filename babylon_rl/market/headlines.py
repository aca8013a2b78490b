"""Texts of the simulated world, in editions: files of babylon_rl/market/texts, read when a market needs one.

No text of a held-out edition stands in a training edition, so a policy is measured on companies, questions and wordings that no training
hour contains. A newer edition changes no older one: an hour keeps its bytes.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TRAINING_EDITIONS = ("training", "training-2")
HELD_OUT_EDITIONS = ("held-out", "held-out-2")
EDITIONS = (*TRAINING_EDITIONS, *HELD_OUT_EDITIONS)
# Of new hours, and of the gate's markets. What one generation learns from texts that it meets once or twice is not enough for the larger
# held-out edition: a first version follows 63 % of its reports, and 87 % of those of the smaller one.
TRAINING, HELD_OUT = TRAINING_EDITIONS[-1], HELD_OUT_EDITIONS[0]

_FOLDER = Path(__file__).parent / "texts"
_PAIR = re.compile(r"\{([^{}|]*)\|([^{}|]*)\}")


@dataclass(frozen=True)
class Words:
    """Posts of an edition; ``{m}`` is a company's name or a question's label.

    ``up``, ``down`` and ``flat`` are posts about a stock, ``yes``, ``no`` and ``unsure`` about a question.

    Those with ``take_`` follow the event that they are about.
    """

    authors: tuple[str, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]
    flat: tuple[str, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    unsure: tuple[str, ...]
    take_up: tuple[str, ...]
    take_down: tuple[str, ...]
    take_flat: tuple[str, ...]
    take_yes: tuple[str, ...]
    take_no: tuple[str, ...]
    take_unsure: tuple[str, ...]

    def of(self, direction: int, question: bool) -> tuple[str, ...]:
        """The texts that say a direction (+1, -1, 0) about a question or a stock."""
        if question:
            return {1: self.yes, -1: self.no, 0: self.unsure}[direction]
        return {1: self.up, -1: self.down, 0: self.flat}[direction]

    def takes(self, direction: int, question: bool) -> tuple[str, ...]:
        """The clauses that say a direction about an event that was quoted."""
        if question:
            return {1: self.take_yes, -1: self.take_no, 0: self.take_unsure}[direction]
        return {1: self.take_up, -1: self.take_down, 0: self.take_flat}[direction]


@dataclass(frozen=True)
class Edition:
    """One set of words; ``{c}`` in a headline is the company's name.

    ``good``, ``bad`` and ``neutral`` are headlines about a company; ``toward_yes``, ``toward_no`` and ``no_news`` about a question.
    """

    name: str
    companies: tuple[tuple[str, float], ...]
    questions: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    neutral: tuple[str, ...]
    toward_yes: tuple[str, ...]
    toward_no: tuple[str, ...]
    no_news: tuple[str, ...]
    posts: Words

    @property
    def wordings(self) -> frozenset[str]:
        """Companies, questions, headlines, posts and authors."""
        texts = (self.questions, self.good, self.bad, self.neutral, self.toward_yes, self.toward_no, self.no_news)
        return frozenset({name for name, _ in self.companies}.union(*texts, *vars(self.posts).values()))


@cache
def edition_named(name: str) -> Edition:
    """The edition of that name, one of EDITIONS."""
    found = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    headlines, questions = found["headlines"], found["questions"]
    composed = [opening + outcome for opening in headlines.get("openings", ()) for outcome in headlines.get("outcomes", ())]
    good, bad = _sides([*headlines.get("pairs", ()), *composed])
    yes, no = _sides(questions.get("pairs", ()))
    return Edition(
        name=name,
        companies=tuple(found["companies"].items()),
        questions=tuple(questions["texts"]),
        good=(*headlines["good"], *good),
        bad=(*headlines["bad"], *bad),
        neutral=tuple(headlines["neutral"]),
        toward_yes=(*questions["toward_yes"], *yes),
        toward_no=(*questions["toward_no"], *no),
        no_news=tuple(questions["no_news"]),
        posts=Words(**{field: tuple(texts) for field, texts in found["posts"].items()}),
    )


def _sides(pairs: Iterable[str]) -> tuple[list[str], list[str]]:
    """Both texts of each pair: ``{rises|falls}`` is "rises" in the first and "falls" in the second."""
    both = list(pairs)
    return [_PAIR.sub(r"\1", text) for text in both], [_PAIR.sub(r"\2", text) for text in both]
