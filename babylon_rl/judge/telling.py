"""Search for texts that state the answer to an open question in plain words.

Searched are a judge's explanations and the agents' prompts. Explanations lie where others may read them (aiJudgeReasoning). This is a
search for words, so it errs both ways: a warning, not a proof. Prompts are full of guesses, so only a true answer stated as a fact
counts there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from babylon_rl.judge.prompt.templates import market_name
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import hidden_answers
from babylon_rl.store.judge_report import HourVerdicts, explanations, hour_verdicts

UNRESOLVED = "UNRESOLVED"
_CLAUSES = re.compile(r"(?<=[.;!])\s+|\n")  # a question mark ends a question's name as often as a sentence
_YES = re.compile(r"\b(?:YES|Yes|yes)\b")
_NO = re.compile(r"\bNO\b|[\"'“‘](?:no|No)[\"'”’]")  # in small letters it is a word like any other
_STATED_NO = re.compile(r"\bNO\b|\bNo\b|[\"'“‘]no[\"'”’]|\bno\W*$")
_RIGHT = re.compile(
    r"\b(?:answer\w*|outcome|resol\w+|correct\w*|right\w*|true|truth|turn(?:s|ed) out|prov(?:ed|es|en)|actual\w*|will be)\b", re.I
)
_STATED = re.compile(
    r"\b(?:(?:yes|no)[\"'”]? (?:is|was) the (?:true|correct|right|real|official|actual|final) (?:answer|outcome)|"
    r"(?:true|correct|right|real|official|actual|hidden|final|secret) (?:answer|outcome|result|resolution)|(?:turns?|turned) out|"
    r"resolves? (?:to |as )?[\"'“]?(?:yes|no)\b|(?:is|was) resolved|resolved (?:to |as )|will resolve|"
    r"answer (?:to \S.{0,200}?)?(?:is|was|will be)|outcome (?:of \S.{0,200}?)?(?:is|was|will be))\b",
    re.I,
)
_STATED_ANCHORS = ("answer", "outcome", "result", "resol", "turn")
_GUESSED = re.compile(
    r"\b(?:if|whether|when|would|could|should|might|may|maybe|perhaps|probably|likely|unlikely|think|thinks|believe|believes|expect|expects|"
    r"guess|bet|bets|betting|chance|odds|rumou?r\w*|say|says|said|claims?|predict\w*|until|either|or)\b",
    re.I,
)
_WRONG = re.compile(r"\b(?:wrong\w*|incorrect\w*|mistak\w+|false)\b", re.I)


@dataclass(frozen=True)
class HiddenAnswer:
    """The engine's answer to a question without an official one.

    ``names`` are the question's names in texts.
    """

    names: tuple[str, ...]
    answer: bool


def tells(explanation: str, hidden: Iterable[HiddenAnswer]) -> bool:
    """True if a clause names a question and states its hidden answer.

    It says that the hidden answer is right, or that the other is wrong.
    """
    for clause in _CLAUSES.split(explanation):
        for asked in hidden:
            own, other = (_YES, _NO) if asked.answer else (_NO, _YES)
            states = (own.search(clause) and _RIGHT.search(clause)) or (other.search(clause) and _WRONG.search(clause))
            if states and any(_named(name, clause) for name in asked.names):
                return True
    return False


def stated_answer(text: str, hidden: Iterable[HiddenAnswer]) -> str | None:
    """First clause that names a question and states its answer as a fact.

    None where no clause does.

    A guess, a condition and both answers in one clause state nothing, nor does the wrong answer.
    """
    small = text.casefold()
    # most texts hold no such word, and the expressions are slow
    if not any(anchor in small for anchor in _STATED_ANCHORS):
        return None
    asked = tuple(hidden)
    for clause in _CLAUSES.split(text):
        stated = _STATED.search(clause)
        if stated is None or _GUESSED.search(clause) is not None:
            continue
        answers = bool(_YES.search(clause, stated.start())), bool(_STATED_NO.search(clause, stated.start()))
        if answers[0] == answers[1]:
            continue
        if any(one.answer == answers[0] and any(_named(name, clause) for name in one.names) for one in asked):
            return clause
    return None


def told_verdicts(connection: Connection, windows: Sequence[str], settings: Settings) -> list[HourVerdicts]:
    """``hour_verdicts``, with explanations searched for the hours' own hidden answers too."""
    hours = hour_verdicts(connection, windows)
    judged = [hour.window for hour in hours if hour.judge not in (None, HEURISTIC)]
    if not judged or not settings.show_hidden_answers_to_judge:
        return hours
    hidden = _hidden(connection, judged, settings)
    texts = explanations(connection, list(hidden))
    return [replace(hour, tells=_told(hour, texts, hidden[hour.window])) if hour.window in hidden else hour for hour in hours]


def _told(hour: HourVerdicts, texts: Mapping[tuple[str, str], str], hidden: Sequence[HiddenAnswer]) -> list[bool]:
    """Flags of an hour's explanations, of the stored check or of this one."""
    return [told or tells(texts[hour.window, agent], hidden) for agent, told in zip(hour.agents, hour.tells, strict=True)]


def _hidden(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, list[HiddenAnswer]]:
    """Hidden answers of each hour's open questions; hours without any are absent."""
    markets = read_many_outcomes(connection, windows, settings)
    open_ = {window: [asked for asked in market.predictions if asked.outcome == UNRESOLVED] for window, market in markets.items()}
    answers = hidden_answers(connection, sorted({asked.market_id for some in open_.values() for asked in some}))
    hidden = {
        window: [
            HiddenAnswer((market_name(asked.market_id, asked.question_number), asked.question), answers[asked.market_id])
            for asked in some
            if asked.market_id in answers
        ]
        for window, some in open_.items()
    }
    return {window: some for window, some in hidden.items() if some}


def _named(name: str, clause: str) -> bool:
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", clause, re.IGNORECASE) is not None
