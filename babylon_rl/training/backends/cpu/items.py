"""Items of the CPU trainer: tokens of a served call, advantage and weight.

Calls that cannot train are counted. Pre-flight counts the same, one call after another, and keeps none, so that a batch may hold more
calls than memory.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from babylon_rl.errors import UsageError
from babylon_rl.models.scoring import EMPTY, NOT_IN_GRAMMAR, EncodedSequence, NotEncodable, encode_sequence
from babylon_rl.training.backends.protocol import TrainPlan, TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_SEQUENCE = 1536  # tokens, prompt and answer: peak memory is measured up to this length (docs/evidence/performance.md)
TOO_LONG, NO_CHOICE, OPEN_SCHEMA = "too_long", "no_choice", "open_schema"
IN_WORDS = {
    EMPTY: "with an empty answer",
    NOT_IN_GRAMMAR: "whose answer is not one that their schema allows",
    NO_CHOICE: "whose schema allows one answer alone",
    OPEN_SCHEMA: "under a schema that is not finite",
    TOO_LONG: f"longer than {LONGEST_SEQUENCE:,} tokens, prompt and answer",
}


@dataclass(frozen=True)
class Item:
    """One encoded sequence with its advantage.

    ``token_weight`` gives all trainable tokens of an episode the same weight.
    """

    encoded: EncodedSequence
    advantage: float
    token_weight: float
    served_t: tuple[float, ...]


def make_items(tokenizer: "PreTrainedTokenizerBase", sequences: Sequence[TrainSequence]) -> tuple[list[Item], Counter[str]]:
    """Encode the sequences of an iteration; count the ones left out by reason.

    An episode (window, agent) weighs the same whatever its length: its loss is the mean over its trainable tokens.
    """
    left_out: Counter[str] = Counter()
    encodable: list[tuple[TrainSequence, EncodedSequence]] = []
    for sequence in sequences:
        encoded = trainable(tokenizer, sequence)
        if isinstance(encoded, str):
            left_out[encoded] += 1
        else:
            encodable.append((sequence, encoded))
    # An episode's weight is divided among its trainable tokens.
    tokens = Counter[tuple[str, str]]()
    for sequence, encoded in encodable:
        tokens[sequence.window, sequence.agent_id] += encoded.trainable_tokens
    # the mean over tokens and episodes of token weights is 1, so that the learning rate means the same for any batch
    scale = sum(tokens.values()) / len(tokens) if tokens else 1.0
    items = [
        Item(encoded, sequence.advantage, scale / tokens[sequence.window, sequence.agent_id], served_logprobs(sequence, encoded))
        for sequence, encoded in encodable
    ]
    return items, left_out


def plan_items(tokenizer: "PreTrainedTokenizerBase", sequences: Sequence[TrainSequence]) -> TrainPlan:
    """Plan the result of ``make_items`` per hour, with the tokenizer alone."""
    tokens = Counter[str]()
    left_out: Counter[str] = Counter()
    trajectories = set[str]()
    for sequence in sequences:
        encoded = trainable(tokenizer, sequence)
        if isinstance(encoded, str):
            left_out[encoded] += 1
        else:
            tokens[sequence.window] += encoded.trainable_tokens
            trajectories.add(sequence.trajectory_id)
    untrained = {IN_WORDS[reason]: number for reason, number in left_out.items()}
    reasons = ", ".join(f"{number} {reason}" for reason, number in untrained.items()) or "no sequence"
    cure = (
        f"The CPU trainer finds sequences that it cannot train: {reasons}. Record prompts that fit, and answers without a response_format "
        "or under one whose answers are finitely many, as they were written."
    )
    return TrainPlan(tokens, len(sequences) - sum(left_out.values()), untrained, cure, trajectories=frozenset(trajectories))


def trainable(tokenizer: "PreTrainedTokenizerBase", sequence: TrainSequence) -> EncodedSequence | str:
    """Encode a sequence, or return the reason (of ``IN_WORDS``) why it cannot train."""
    try:
        encoded = encode_sequence(tokenizer, sequence.messages, sequence.response, sequence.response_format)
    except UsageError:  # recorded elsewhere under a schema whose language is not finite
        return OPEN_SCHEMA
    if isinstance(encoded, NotEncodable):
        return encoded.reason
    if not encoded.trainable_tokens:
        return NO_CHOICE
    return TOO_LONG if len(encoded.prompt_ids) + len(encoded.response_ids) > LONGEST_SEQUENCE else encoded


def served_logprobs(sequence: TrainSequence, encoded: EncodedSequence) -> tuple[float, ...]:
    """Recorded log-probabilities by response token.

    All NaN unless every token is recorded, finite, and has the base's own id.
    """
    recorded = sequence.logprobs or ()
    values = [entry.get("logprob") for entry in recorded]
    finite = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if not finite or [entry.get("tokenId") for entry in recorded] != list(encoded.response_ids):
        return (math.nan,) * len(encoded.response_ids)
    return tuple(float(value) for value in values if value is not None)
