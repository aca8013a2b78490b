"""Answer groups in the CPU trainer: each answer counts as often as the policy would give it.

One pass without gradients, before the first step of an iteration, gives the probability of every answer. With these as weights a group is
the exact expectation over infinitely many samples: its mean score is the policy's own, and its expected advantage is 0. The pass's
log-probabilities stand for the serving policy's. Answers that the policy would hardly give are left out. A group of which one answer, or
one score, remains teaches nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from babylon_rl.judge.consensus import ADVANTAGE_SCALE
from babylon_rl.training.backends.cpu.policy import Group, Item, PackedPolicy, Spot, choices, pack
from babylon_rl.types import NO_SPREAD

LEAST_PROBABILITY = 0.003
UNLIKELY, SURE = "unlikely_answer", "sure_answer"


def weigh_answers(policy: PackedPolicy, items: Sequence[Item], left_out: Counter[str]) -> list[Item]:
    """Return the items of an iteration, with advantage, weight and log-probabilities of those in answer groups.

    A group weighs as much as an episode. Answers that are left out are counted by reason. Where no group teaches anything all stay, with
    advantage 0.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group:
            groups.setdefault(item.group, []).append(item)
    if not groups:
        return list(items)
    answers = [item for group in groups.values() for item in group]
    logprobs = iter(answer_logprobs(policy, answers))
    kept, sure = [item for item in items if not item.group], list[Item]()
    for group in groups.values():
        likely = weighed(group, [next(logprobs) for _ in group])
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


def answer_logprobs(policy: PackedPolicy, items: Sequence[Item]) -> list[tuple[float, ...]]:
    """Return the log-probability of each response token under the policy as it is; 0 where it had no alternative."""
    import torch

    def compute(group: Group) -> tuple[list[Spot], list[float]]:
        spots = [spot for row in group for spot in choices(row, items)]
        with torch.no_grad():  # holds for a thread alone
            values_n, _ = policy.values(policy.hidden(group, items), items, spots)
        return spots, values_n.tolist()

    found = [[0.0] * len(item.encoded.response_ids) for item in items]
    policy.model.eval()
    for spots, values in policy.each(policy.grouped(pack([item.encoded for item in items])), compute):
        for (_, n, t), value in zip(spots, values, strict=True):
            found[n][t] = value
    return [tuple(by_token) for by_token in found]
