"""Answer groups in the CPU trainer: the target of each is the policy, improved by the scores.

One pass without gradients, before the first step of an iteration, gives the probability p of every answer (``at_choices``). With advantages
A = (score - mean)/ADVANTAGE_SCALE the target q ~ p exp(GAIN A) maximizes E_q[A] - KL(q || p)/GAIN (Abdolmaleki et al. 2018, "Maximum a
posteriori policy optimisation"). It is learned by cross-entropy: each answer weighs as much as its target. A policy gradient would move an
answer in proportion to its probability, and hardly correct a text that is read the wrong way for certain.

A group's gain is lowered until its best answer's target is at most ``MOST_TARGET``, or half way from its probability to 1: what the trust
region lets a policy move then goes to texts that are read the wrong way, not into making right answers surer.

Answers with hardly any target are left out. Of the groups whose target is the policy, as it knows their answer, one in ``SURE_EVERY`` stays
in place of all: it holds what is right, and counts in the trust region.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from babylon_rl.judge.consensus import ADVANTAGE_SCALE
from babylon_rl.models.scoring import EncodedSequence
from babylon_rl.training.backends.cpu.bounds import AtChoices
from babylon_rl.training.backends.cpu.policy import Item

GAIN = 2.0  # less leaves sizes behind, more learns the noise of scores
MOST_TARGET = 0.8
LEAST_TARGET = 0.003
LEAST_MOVE = 0.01  # total variation of target and policy
SURE_EVERY = 3  # one takes half of the time that all would, where three groups in four are sure
UNLIKELY, SURE = "unlikely_answer", "sure_answer"


def weigh_answers(items: Sequence[Item], at: AtChoices, left_out: Counter[str]) -> list[Item]:
    """Return the items of an iteration, with the weights of those in answer groups.

    ``at`` has the policy's distributions in these groups. A group weighs as much as an episode. Answers that are left out are counted by
    reason.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group:
            groups.setdefault(item.group, []).append(item)
    if not groups:
        return list(items)
    kept, sure = [item for item in items if not item.group], 0
    for group in groups.values():
        likely, move = weighed(group, [answer_logprob(item.encoded, at) for item in group])
        if move < LEAST_MOVE:
            sure += 1
            if sure % SURE_EVERY != 1:
                left_out[SURE] += len(group)
                continue
            likely = [replace(item, token_weight=item.token_weight * SURE_EVERY) for item in likely]
        left_out[UNLIKELY] += len(group) - len(likely)
        kept += likely
    return at_unit_weight(kept)


def at_unit_weight(items: Sequence[Item]) -> list[Item]:
    """Scale weights so that a token's mean weight is 1, as in make_items: the learning rate means the same for any batch."""
    scale = sum(item.encoded.trainable_tokens for item in items) / sum(item.encoded.trainable_tokens * item.token_weight for item in items)
    return [replace(item, token_weight=item.token_weight * scale) for item in items]


def weighed(group: Sequence[Item], logprobs: Sequence[float]) -> tuple[list[Item], float]:
    """Weigh the answers of one group by their targets, given their log-probabilities; and the total variation of target and policy."""
    chances, targets = normalized(logprobs), targets_of(logprobs, [item.score for item in group])
    move = math.fsum(abs(target - chance) for target, chance in zip(targets, chances, strict=True)) / 2
    likely = [(item, target) for item, target in zip(group, targets, strict=True) if target >= LEAST_TARGET]
    tokens = math.fsum(target * item.encoded.trainable_tokens for item, target in likely)
    return [replace(item, advantage=1.0, token_weight=item.token_weight * target / tokens) for item, target in likely], move


def targets_of(logprobs: Sequence[float], scores: Sequence[float]) -> list[float]:
    """Target of each answer of a group, given log-probabilities and scores."""

    def at(gain: float) -> list[float]:
        # The mean of the scores, which an advantage is over, cancels.
        return normalized([value + gain * score / ADVANTAGE_SCALE for value, score in zip(logprobs, scores, strict=True)])

    best, whole = scores.index(max(scores)), at(GAIN)
    most = max(MOST_TARGET, (1 + at(0)[best]) / 2)
    if whole[best] <= most:
        return whole
    low, high = 0.0, GAIN
    # The best answer's target rises with the gain: twenty halvings find where it is the most allowed.
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[best] <= most else (low, middle)
    return at(low)


def normalized(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    weights = [math.exp(value - most) for value in logits]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


def answer_logprob(answer: EncodedSequence, at: AtChoices) -> float:
    """Log-probability of an answer under a grammar."""
    found, tokens = iter(at[answer]), zip(answer.response_ids, answer.legal_t, answer.trainable_t, strict=True)
    return math.fsum(float(next(found)[(legal or ()).index(token)]) for token, legal, trains in tokens if trains)
