"""Answer groups in the CPU trainer: each answer counts as often as the policy would give it.

One pass without gradients, before the first step of an iteration, gives the probability of every answer (``at_choices``). With these as
weights a group is the exact expectation over infinitely many samples: its mean score is the policy's own, and its expected advantage is 0.
The pass's log-probabilities stand for the serving policy's. Answers that the policy would hardly give are left out. A group of which one
answer, or one score, remains teaches nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from babylon_rl.judge.consensus import ADVANTAGE_SCALE
from babylon_rl.models.scoring import EncodedSequence
from babylon_rl.training.backends.cpu.bounds import AtChoices
from babylon_rl.training.backends.cpu.policy import Item
from babylon_rl.types import NO_SPREAD

LEAST_PROBABILITY = 0.003
UNLIKELY, SURE = "unlikely_answer", "sure_answer"


def weigh_answers(items: Sequence[Item], at: AtChoices, left_out: Counter[str]) -> list[Item]:
    """Return the items of an iteration, with advantage, weight and log-probabilities of those in answer groups.

    ``at`` has the policy's distributions in these groups. A group weighs as much as an episode. Answers that are left out are counted by
    reason. Where no group teaches anything all stay, with advantage 0.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group:
            groups.setdefault(item.group, []).append(item)
    if not groups:
        return list(items)
    kept, sure = [item for item in items if not item.group], list[Item]()
    for group in groups.values():
        likely = weighed(group, [answer_logprobs(item.encoded, at) for item in group])
        teaches = any(item.advantage for item in likely)
        left_out[UNLIKELY if teaches else SURE] += len(group) - (len(likely) if teaches else 0)
        kept += likely if teaches else []
        sure += [] if teaches else likely
    # An iteration that teaches nothing must not end a batch whose others do: entropy and KL alone have gradients then.
    kept = kept or sure
    # As in make_items: the mean weight of a token is 1, so that the learning rate means the same for any batch.
    scale = sum(item.encoded.trainable_tokens for item in kept) / sum(item.encoded.trainable_tokens * item.token_weight for item in kept)
    return [replace(item, token_weight=item.token_weight * scale) for item in kept]


def weighed(group: Sequence[Item], logprobs: Sequence[tuple[float, ...]]) -> list[Item]:
    """Weigh the likely answers of one group, given their log-probabilities by token. Without a difference of scores advantages are 0."""
    chances = [math.exp(math.fsum(by_token)) for by_token in logprobs]
    least = LEAST_PROBABILITY * math.fsum(chances)
    likely = [one for one in zip(group, logprobs, chances, strict=True) if one[2] >= least]
    whole = math.fsum(chance for _, _, chance in likely)
    mean = math.fsum(chance * item.score for item, _, chance in likely) / whole
    flat = all(abs(item.score - mean) < NO_SPREAD for item, _, _ in likely)
    tokens = math.fsum(chance * item.encoded.trainable_tokens for item, _, chance in likely)
    scale = math.inf if flat else ADVANTAGE_SCALE
    return [
        replace(item, advantage=(item.score - mean) / scale, token_weight=item.token_weight * chance / tokens, served_t=by_token)
        for item, by_token, chance in likely
    ]


def answer_logprobs(answer: EncodedSequence, at: AtChoices) -> tuple[float, ...]:
    """Log-probability of each token of an answer under a grammar; 0 where it had no alternative."""
    found, tokens = iter(at[answer]), zip(answer.response_ids, answer.legal_t, answer.trainable_t, strict=True)
    return tuple(float(next(found)[(legal or ()).index(token)]) if trains else 0.0 for token, legal, trains in tokens)
