"""What the CPU trainer makes of served calls: tokens, each with its episode's advantage and weight; what cannot train is counted."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from babylon_rl.errors import UsageError
from babylon_rl.models.scoring import EncodedSequence, NotEncodable, encode_sequence
from babylon_rl.training.trainer import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_SEQUENCE = 1536


@dataclass(frozen=True)
class Item:
    """One sequence as it trains: ``token_weight`` makes each of its episode's trainable tokens count the same."""

    encoded: EncodedSequence
    advantage: float
    token_weight: float
    served_t: tuple[float, ...]


def make_items(tokenizer: "PreTrainedTokenizerBase", sequences: Sequence[TrainSequence]) -> tuple[list[Item], Counter[str]]:
    """The items of an iteration, and how many sequences were left out by reason.

    An episode (window, agent) weighs the same whatever its length: its loss is the mean over its trainable tokens.
    """
    left_out: Counter[str] = Counter()
    found: list[tuple[TrainSequence, EncodedSequence]] = []
    for sequence in sequences:
        try:
            encoded = encode_sequence(tokenizer, sequence.messages, sequence.response, sequence.response_format)
        except UsageError:  # recorded elsewhere under a schema whose language is not finite
            left_out["open_schema"] += 1
            continue
        if isinstance(encoded, NotEncodable):
            left_out[encoded.reason] += 1
        elif not encoded.trainable_tokens:
            left_out["no_choice"] += 1
        elif len(encoded.prompt_ids) + len(encoded.response_ids) > LONGEST_SEQUENCE:
            left_out["too_long"] += 1
        else:
            found.append((sequence, encoded))
    tokens = Counter[tuple[str, str]]()
    for sequence, encoded in found:
        tokens[sequence.window, sequence.agent_id] += encoded.trainable_tokens
    # the mean over tokens and episodes of token weights is 1, so that the learning rate means the same for any batch
    scale = sum(tokens.values()) / len(tokens) if tokens else 1.0
    items = [
        Item(encoded, sequence.advantage, scale / tokens[sequence.window, sequence.agent_id], served_logprobs(sequence, encoded))
        for sequence, encoded in found
    ]
    return items, left_out


def served_logprobs(sequence: TrainSequence, encoded: EncodedSequence) -> tuple[float, ...]:
    """Recorded log-probabilities by response token; NaN unless every token is recorded, finite, under the base's own ids."""
    recorded = sequence.logprobs or ()
    values = [entry.get("logprob") for entry in recorded]
    known = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if not known or [entry.get("tokenId") for entry in recorded] != list(encoded.response_ids):
        return (math.nan,) * len(encoded.response_ids)
    return tuple(float(value) for value in values if value is not None)
