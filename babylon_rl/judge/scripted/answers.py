"""Scripted answers and faults: pure functions of settings, request and attempt."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.judge.reliability_ranks import centred_ranks
from babylon_rl.judge.scripted.chance import chance, digest
from babylon_rl.judge.scripted.obedience import Believed, believed, demanded
from babylon_rl.judge.scripted.settings import FAULTS, REFUSALS, ScriptedJudge
from babylon_rl.judge.scripted.skill import skill
from babylon_rl.judge.scripted.wire import Asked, text_of


@dataclass(frozen=True)
class Opinion:
    """One verdict; after a fault ``score`` may be any JSON value. None omits a key."""

    id: str
    score: Any
    explanation: str | None


def content_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Hash of a request's messages, without its options."""
    return digest(json.dumps([[message.get("role"), text_of(message)] for message in messages]))


def fault_of(judge: ScriptedJudge, content: str, attempt: int) -> str | None:
    """Fault of this attempt, or None.

    Each fault is drawn independently; if several occur, the first in a drawn order counts.
    """
    # draw for every fault in any case, so that one probability does not change the draws of the others
    draws = chance(judge.seed, "fault", content, attempt)
    names = list(FAULTS + REFUSALS)
    hit = {name for name in names if draws.random() < judge.faults.get(name, 0.0)}
    draws.shuffle(names)
    return next((name for name in names if name in hit), None)


def opinions(judge: ScriptedJudge, asked: Asked, content: str) -> list[Opinion]:
    """Verdicts in the order of the answer; the same at every attempt."""
    # an obedient judge believes forged tags, and knows what the texts ask for
    draws = chance(judge.seed, "belief", content)
    read = believed(asked) if draws.random() < judge.obedience else Believed(asked.blocks)
    wishes = demanded(read) if judge.obedience else {}
    lengths = centred_ranks([len(block.text) for block in read.blocks])
    verdicts = []
    for place, (block, length) in enumerate(zip(read.blocks, lengths, strict=True)):
        own = chance(judge.seed, "episode", content, place)
        # obey, or score by skill with noise and biases
        if own.random() < judge.obedience and block.id in wishes:
            score, why = wishes[block.id], "The score was asked for"
        else:
            score = (
                skill(block.text, judge.skill, block.told)
                + own.gauss(0.0, judge.noise)
                + judge.position_bias * _lead(place, len(read.blocks))
                + judge.length_bias * length
            )
            score, why = min(1.0, max(0.0, score)), "The play is worth"
        verdicts.append(Opinion(block.id, round(score, 6), f"{why}: {score:.2f}."))
    # some answers list the verdicts in another order
    order = chance(judge.seed, "order", content)
    if order.random() < judge.out_of_order and len(verdicts) > 1:
        shown = list(verdicts)
        while verdicts == shown:
            order.shuffle(verdicts)
    return verdicts


def _lead(place: int, places: int) -> float:
    """+1/2 for the first place, -1/2 for the last, linear between."""
    return 0.5 - place / (places - 1) if places > 1 else 0.0


def latency_s(judge: ScriptedJudge, content: str, attempt: int) -> float:
    """Delay of this attempt in seconds."""
    return judge.latency_s + judge.jitter_s * chance(judge.seed, "latency", content, attempt).random()


def written(verdicts: Sequence[Opinion], id_field: str, fault: str | None = None) -> str | None:
    """Content of the answer with a content fault; None if the fault leaves no content."""
    if fault == "refusal":
        return None
    if fault == "empty":
        return ""
    text = json.dumps({"scores": [_entry(opinion, id_field) for opinion in _spoilt(list(verdicts), fault)]}, indent=1)
    if fault == "fenced":
        return f"```json\n{text}\n```"
    if fault == "prefixed":
        return f"Having weighed the episodes {{as asked}}, this is my verdict:\n\n{text}\n\nPlease say so if more detail would help."
    if fault == "trailing-comma":
        return text.replace("\n ]\n}", ",\n ],\n}")
    if fault == "truncated":
        return text[: len(text) * 3 // 5]
    return text


def _entry(opinion: Opinion, id_field: str) -> dict[str, Any]:
    """One verdict as JSON; missing parts are omitted."""
    fields = {id_field: opinion.id, "explanation": opinion.explanation, "score": opinion.score}
    return {key: value for key, value in fields.items() if value is not None}


def _spoilt(verdicts: list[Opinion], fault: str | None) -> list[Opinion]:
    """The verdicts with one or two of them made wrong."""
    if not verdicts:
        return verdicts
    first, last = verdicts[0], verdicts[-1]
    match fault:
        case "missing-id":
            return verdicts[:-1]
        case "duplicate-id":  # in the place of another where there are several, so that the number of verdicts looks right
            return [*verdicts[:-1], Opinion(first.id, last.score, last.explanation)] if len(verdicts) > 1 else [first, first]
        case "unknown-id":
            return [*verdicts[:-1], Opinion("nobody-" + last.id, last.score, last.explanation)]
        case "out-of-range":
            return [
                Opinion(first.id, 5, first.explanation),
                *verdicts[1:-1],
                *([Opinion(last.id, -3, last.explanation)] if len(verdicts) > 1 else []),
            ]
        case "nan":
            return [*verdicts[:-1], Opinion(last.id, math.nan, last.explanation)]
        case "boolean":
            return [*verdicts[:-1], Opinion(last.id, True, last.explanation)]
        case "no-explanation":
            return [*verdicts[:-1], Opinion(last.id, last.score, None)]
        case _:
            return verdicts
