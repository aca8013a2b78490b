"""What a version was trained to be asked: the prompt's version and the grammar of its answers, found in the sequences themselves.

Recorders write the texts and not the name of the prompt, so the system message is compared with the prompts that ship. What is none of
them is said to be not recorded.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from babylon_rl.market.simulation.prompting import system_texts
from babylon_rl.models.checkpoints import FREE_TEXT
from babylon_rl.training.trainer import TrainSequence

UNKNOWN = "not recorded"


def prompt_version(sequences: Sequence[TrainSequence]) -> str | None:
    """The prompt's name; with its share of the sequences where there are several; None where none is known."""
    known = system_texts()
    return _named(Counter(known.get(_system(one.messages), UNKNOWN) for one in sequences))


def action_grammar(sequences: Sequence[TrainSequence]) -> str | None:
    """How answers were constrained: the schema's name with its forms (the markets in it change by the hour), or free text."""
    return _named(Counter(_grammar(one.response_format) for one in sequences))


def _named(counted: Counter[str]) -> str | None:
    if set(counted) <= {UNKNOWN}:
        return None
    if len(counted) == 1:
        return next(iter(counted))
    total = counted.total()
    return ", ".join(f"{name} ({number / total:.0%})" for name, number in counted.most_common())


def _system(messages: Iterable[dict[str, Any]]) -> str:
    return next((str(message.get("content") or "").strip() for message in messages if message.get("role") == "system"), "")


def _grammar(response_format: dict[str, Any] | None) -> str:
    if response_format is None:
        return FREE_TEXT
    described = response_format.get("json_schema")
    name = described.get("name") if isinstance(described, dict) else None
    return str(name) if isinstance(name, str) else str(response_format.get("type", "json"))
