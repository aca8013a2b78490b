"""Sentence templates for the outcomes that a judge is shown, as data.

Agents never read these sentences. The leak check (leakage.py) is built from the same templates, so no such sentence can stand in a
training text unseen: build them with ``fill_template`` and nowhere else. A field's type is a pattern that its value must match.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

LeakKind = Literal["outcome", "hidden_answer", "game_knowledge", "score"]

UNKNOWN = "unknown"
TEXT_CHARACTERS = 400
HIDDEN = "Hidden from the agents:"


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


def fill_template(template: Template, **values: Any) -> str:
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


def market_name(market_id: str, number: int | None) -> str:
    """Name of a question: its number, or its market where it has none."""
    return f"Q{number}" if number is not None else f"market {market_id}"


def knowledge_sentences(knowledge: Mapping[str, Any]) -> list[str]:
    """Sentences with a trajectory's recorded gameKnowledge; empty entries are skipped."""
    sentences = []
    for section, entries in knowledge.items():
        if isinstance(entries, Mapping):
            sentences += [fill_template(GAME_KNOWLEDGE, section=section, key=key, value=value) for key, value in entries.items()]
        elif entries not in (None, "", []):
            sentences.append(fill_template(GAME_KNOWLEDGE, section=section, key="it", value=entries))
    return sentences
