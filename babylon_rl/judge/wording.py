"""Sentence templates for the outcomes that a judge is shown, as data.

Agents never read these sentences. The leak check (leaks.py) is built from the same templates, so no such sentence can stand in a
training text unseen: build them with ``say`` and nowhere else. A field's type is a pattern that its value must match.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from babylon_rl.episodes.types import Episode
from babylon_rl.judge.groups import GroupScores
from babylon_rl.market.window_market import PredictionOutcome, StockOutcome, WindowOutcomes

LeakKind = Literal["outcome", "hidden_answer", "game_knowledge", "score"]

UNKNOWN = "unknown"
TEXT_CHARACTERS = 400
HIDDEN = "Hidden from the agents:"
KNOWLEDGE_KEYS = ("trueProbabilities", "actualOutcomes", "futureOutcomes")


@dataclass(frozen=True)
class Template:
    """One sentence: ``text`` with fields ``{name:type}``; ``kind`` is the leak it would be.

    The types are those of ``FIELD_TYPES``.
    """

    name: str
    kind: LeakKind
    text: str

    @property
    def parts(self) -> list[tuple[str, str | None, str]]:
        """The sentence in order, as (literal, field name, field type).

        At the end of the sentence the name is None and the type empty.
        """
        return [(literal, name, kind or "") for literal, name, kind, _ in Formatter().parse(self.text)]


# Pattern of a field's value, once written by ``_written``: letters folded, white space gone.
_NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)"
FIELD_TYPES: Mapping[str, str] = {
    "number": rf"(?:{_NUMBER}|{UNKNOWN})",
    "label": rf"(?:bullish|bearish|neutral|{UNKNOWN})",
    "answer": rf"(?:yes|no|unresolved|{UNKNOWN})",
    "side": rf"(?:yes|no|up|down|{UNKNOWN})",
    "verdict": r"(?:right|wrong|undecided)",
    "window": r"\d{4}-\d\d-\d\dt\d\d:\d\d",
    # folding a letter can make three of it
    "text": rf".{{0,{3 * TEXT_CHARACTERS}}}?",
}

MARKET = Template(
    "market", "outcome", "The market as a whole in the hour {window:window}: mean change {mean:number} %, volatility {volatility:number} %."
)
STOCK = Template(
    "stock", "outcome",
    "Over the hour {name:text} went from ${start:number} to ${end:number}, a change of {change:number} %: {label:label}.",
)  # fmt: skip
NEWS = Template("news", "outcome", "News of this hour that concerned {subject:text}: {news:text}.")
PREDICTION = Template(
    "prediction", "outcome",
    'The question "{question:text}" ({market:text}) went from {start:number} to {end:number} probability of YES; '
    "its official answer is {answer:answer}.",
)  # fmt: skip
STOCKS = Template("stocks", "outcome", "Stocks over the hour {window:window}, dollars at its start and its end: {stocks:text}.")
QUESTION = Template(
    "question_brief", "outcome",
    'In the hour {market:text} "{question:text}" went from {start:number} to {end:number} for YES, officially {answer:answer}.',
)  # fmt: skip
ACTION = Template(
    "action", "outcome",
    "Step {step:number} of {agent:text} took the side {side:side} of {target:text}, which proved {verdict:verdict} by the outcome.",
)  # fmt: skip
WINDOW_PNL = Template(
    "window_pnl", "outcome", "From the hour's start to its end {agent:text} made {pnl:number} dollars in {steps:number} steps."
)
HIDDEN_ANSWER = Template(
    "hidden_answer", "hidden_answer",
    f'{HIDDEN} the engine decided when it made the question "{{question:text}}" ({{market:text}}) that the answer is {{answer:answer}}.',
)  # fmt: skip
HIDDEN_ANSWERS = Template(
    "hidden_answers", "hidden_answer", f"{HIDDEN} the answers that the engine decided when it made the questions: {{answers:text}}."
)
GAME_KNOWLEDGE = Template(
    "game_knowledge", "game_knowledge", f"{HIDDEN} the game knew by {{section:text}} that {{key:text}} is {{value:text}}, says its record."
)
SCORE = Template(
    "score", "score", "The judge gave {agent:text} a score of {score:number}, rank {rank:number} of {group:number} in its hour."
)
ADVANTAGE = Template("advantage", "score", "Against its group {agent:text} has an advantage of {advantage:number}.")

TEMPLATES = (
    MARKET, STOCK, STOCKS, NEWS, PREDICTION, QUESTION, ACTION, WINDOW_PNL, HIDDEN_ANSWER, HIDDEN_ANSWERS, GAME_KNOWLEDGE, SCORE, ADVANTAGE,
)  # fmt: skip


def say(template: Template, **values: Any) -> str:
    """Fill a template: numbers short, None as ``unknown``, texts in one line.

    A text has at most TEXT_CHARACTERS characters.

    Raises:
        KeyError: a field has no value.
        ValueError: a value is not of its field's type.
    """
    written = []
    for literal, name, kind in template.parts:
        written.append(literal)
        if name is not None:
            value = _written(kind, values[name])
            if re.fullmatch(FIELD_TYPES[kind], folded(value), re.DOTALL) is None:
                raise ValueError(f"{template.name}: {name} is {value!r}, which is no {kind}")
            written.append(value)
    return "".join(written)


def folded(text: str) -> str:
    """Text without white space and letter case, the form in which templates are compared."""
    return "".join(text.casefold().split())


def _written(kind: str, value: Any) -> str:
    """A value as it is written in a field of this type."""
    if kind == "text":
        line = " ".join(str(value).split())
        return line if len(line) <= TEXT_CHARACTERS else line[: TEXT_CHARACTERS - 1] + "…"
    if value is None:
        return UNKNOWN
    if kind == "number" and isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else UNKNOWN
    return str(value)


def market_sentences(outcomes: WindowOutcomes) -> list[str]:
    """Sentences on an hour's market: the whole, each stock, each question, then the news."""
    if not outcomes.stocks and not outcomes.predictions:
        return []
    whole = say(MARKET, window=outcomes.window, mean=outcomes.mean_change, volatility=outcomes.volatility)
    questions = [_question(prediction) for prediction in outcomes.predictions]
    return [whole, *(_stock(stock) for stock in outcomes.stocks), *questions, *_news(outcomes)]


def _stock(stock: StockOutcome) -> str:
    return say(
        STOCK, name=f"{stock.name} ({stock.ticker})", start=stock.start_price, end=stock.end_price, change=stock.change_percent,
        label=stock.sentiment,
    )  # fmt: skip


def _question(asked: PredictionOutcome) -> str:
    return say(
        PREDICTION, question=asked.question, market=market_name(asked.market_id, asked.question_number), start=asked.start_probability,
        end=asked.end_probability, answer=asked.outcome,
    )  # fmt: skip


def _news(outcomes: WindowOutcomes) -> Iterator[str]:
    for stock in outcomes.stocks:
        yield from (say(NEWS, subject=stock.name, news=text) for text in stock.news)
    for asked in outcomes.predictions:
        yield from (say(NEWS, subject=market_name(asked.market_id, asked.question_number), news=text) for text in asked.news)


def market_name(market_id: str, number: int | None) -> str:
    """Name of a question: its number, or its market where it has none."""
    return f"Q{number}" if number is not None else f"market {market_id}"


def hidden_answer_sentence(asked: PredictionOutcome, answer: bool) -> str:
    """Sentence with the engine's own answer to a question, marked as hidden."""
    market = market_name(asked.market_id, asked.question_number)
    return say(HIDDEN_ANSWER, question=asked.question, market=market, answer="YES" if answer else "NO")


def knowledge_sentences(knowledge: Mapping[str, Any]) -> list[str]:
    """Sentences with a trajectory's recorded gameKnowledge; empty entries are skipped."""
    sentences = []
    for section, entries in knowledge.items():
        if isinstance(entries, Mapping):
            sentences += [say(GAME_KNOWLEDGE, section=section, key=key, value=value) for key, value in entries.items()]
        elif entries not in (None, "", []):
            sentences.append(say(GAME_KNOWLEDGE, section=section, key="it", value=entries))
    return sentences


def episode_sentence(episode: Episode) -> str:
    """Sentence with an agent's P&L in its hour."""
    return say(WINDOW_PNL, agent=episode.agent_id, pnl=episode.window_pnl, steps=episode.steps)


def score_sentences(group: GroupScores) -> list[str]:
    """Sentences with a judge's scores of a group, for a judge of judges."""
    return [
        sentence
        for one in group.scores
        for sentence in (
            say(SCORE, agent=one.agent_id, score=one.score, rank=one.rank, group=group.group_size),
            say(ADVANTAGE, agent=one.agent_id, advantage=one.advantage),
        )
    ]
