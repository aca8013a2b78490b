"""Prompt version and answer grammar of a training, derived from its sequences.

Recorders store the texts and not the prompt's name, so the system message is compared with the prompts that ship. Other prompts are
reported as not recorded.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from babylon_rl.market.simulation.prompting import system_texts
from babylon_rl.models.checkpoints import FREE_TEXT
from babylon_rl.training.backends.protocol import TrainSequence

UNKNOWN = "not recorded"


def prompt_version(sequences: Sequence[TrainSequence]) -> str | None:
    """Name of the prompt; shares where there are several; None where none is known."""
    known = system_texts()
    return _named(Counter(known.get(_system(sequence.messages), UNKNOWN) for sequence in sequences))


def action_grammar(sequences: Sequence[TrainSequence]) -> str | None:
    """Constraint on the answers: the schema's name with its forms, or free text.

    The markets in the schema change by the hour, so they are not part of the name.
    """
    return _named(Counter(_grammar(sequence.response_format) for sequence in sequences))


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
