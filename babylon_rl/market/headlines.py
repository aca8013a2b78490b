"""Texts of the simulated world, in editions: files of babylon_rl/market/texts, read when a market needs one.

No text of a held-out edition stands in a training edition, so a policy is measured on companies, questions and wordings that no training
hour contains. A newer edition changes no older one: an hour keeps its bytes.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
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
# Of posts, by direction (+1, -1, 0): about a stock, about a question.
_SIDES = {False: {1: "up", -1: "down", 0: "flat"}, True: {1: "yes", -1: "no", 0: "unsure"}}
_PAIR = re.compile(r"\{([^{}|]*)\|([^{}|]*)\}")


@dataclass(frozen=True)
class Edition:
    """One set of words; ``{c}`` in a headline is the company's name.

    ``good``, ``bad`` and ``neutral`` are headlines about a company; ``toward_yes``, ``toward_no`` and ``no_news`` about a question.
    ``posts`` are by their side (``up``, ``yes``), and after ``take_`` the clauses that follow an event; ``{m}`` in them is a company's name
    or a question's label.
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
    authors: tuple[str, ...]
    posts: Mapping[str, tuple[str, ...]]

    def posts_of(self, direction: int, *, question: bool, take: bool = False) -> tuple[str, ...]:
        """The texts that say a direction (+1, -1, 0) about a question or a stock, or about an event that was quoted."""
        return self.posts[("take_" if take else "") + _SIDES[question][direction]]

    @property
    def wordings(self) -> frozenset[str]:
        texts = (self.questions, self.good, self.bad, self.neutral, self.toward_yes, self.toward_no, self.no_news)
        return frozenset({name for name, _ in self.companies}.union(*texts, self.authors, *self.posts.values()))


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
        authors=tuple(found["posts"].pop("authors")),
        posts={side: tuple(texts) for side, texts in found["posts"].items()},
    )


def _sides(pairs: Iterable[str]) -> tuple[list[str], list[str]]:
    """Both texts of each pair: ``{rises|falls}`` is "rises" in the first and "falls" in the second."""
    both = list(pairs)
    return [_PAIR.sub(r"\1", text) for text in both], [_PAIR.sub(r"\2", text) for text in both]
