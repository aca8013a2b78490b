"""Loss of the CPU trainer.

Per token that had alternatives: ``-clip(ratio, 0, 5) * advantage * logp``. The ratio is to the serving policy where its
log-probabilities were recorded (CISPO: the ratio carries no gradient), else 1, which is group-relative REINFORCE. This is exactly
openpipe-art's default loss when three guards are off (``ART_WEIGHTS``). The guards: a negative advantage has no effect on an answer of
somebody else once its token is below ``stale_probability``; an entropy bonus; a penalty on the exact KL divergence from the base over the
legal tokens.

The first guard leaves recorded tokens alone: their ratio goes to 0 with their probability, which bounds the push. Answers of others have
a ratio of 1, and would be pushed down without end. Answers of groups have the advantage 1 and no ratio: their loss is the cross-entropy to
the group's target (answers.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from babylon_rl.training.backends.cpu import RATIO_LIMIT

STALE_PROBABILITY = 0.05
LONGEST_LOG_RATIO = 50.0  # so that sums stay finite


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, in units of the policy term, per token.

    0 switches a term off. The ratio is clipped to [1 - ``epsilon``, 1 + ``epsilon_high``]. A token without a recorded log-probability is
    not pushed down further below ``stale_probability``, which affects negative advantages only.
    """

    entropy: float
    kl: float
    stale_probability: float = STALE_PROBABILITY
    epsilon: float = 1.0
    epsilon_high: float = RATIO_LIMIT - 1


ART_WEIGHTS = LossWeights(entropy=0.0, kl=0.0, stale_probability=0.0)


def token_loss(
    logprobs_n: Tensor, entropy_n: Tensor, advantages_n: Tensor, served_n: Tensor, kl_n: Tensor | None, weights: LossWeights
) -> Tensor:
    """[N] losses of N tokens.

    Args:
        logprobs_n: under the policy in training, with gradients.
        entropy_n: over the tokens that were legal, in nats, with gradients.
        advantages_n: of each token's episode.
        served_n: recorded log-probabilities, NaN where there are none.
        kl_n: divergence of the policy from the base at each token, with gradients; None when its weight is 0.
    """
    ratio_n, stale_n = _ratios(logprobs_n.detach(), advantages_n, served_n, weights)
    # The ratio is detached: it weighs the gradient of the log-probability and has none itself (CISPO).
    push_n = (ratio_n.clamp(1 - weights.epsilon, 1 + weights.epsilon_high) * advantages_n).masked_fill(stale_n, 0.0)
    loss = -push_n * logprobs_n - weights.entropy * entropy_n
    if kl_n is not None:
        loss = loss + weights.kl * kl_n
    return loss


def clipped(logprobs_n: Tensor, advantages_n: Tensor, served_n: Tensor, weights: LossWeights) -> Tensor:
    """[N] booleans: the ratio left its bounds, or the guard of negative advantages applies."""
    ratio_n, stale_n = _ratios(logprobs_n.detach(), advantages_n, served_n, weights)
    return stale_n | (ratio_n < 1 - weights.epsilon) | (ratio_n > 1 + weights.epsilon_high)


def served_sums(logprobs_n: Tensor, served_n: Tensor) -> dict[str, float]:
    """Sums over the tokens with recorded log-probabilities: their number, ratio, clipped ratio and divergence.

    The ratio is that of the loss before it is clipped to at most RATIO_LIMIT. The divergence, ratio - 1 - log ratio, estimates
    KL(serving policy || current one) without bias and is never negative (Schulman, "Approximating KL divergence", k3). A token that was
    rare when it was served and is likely now has a ratio of hundreds: a few of those make most of the means of both.
    """
    log_ratio_n = (logprobs_n.detach() - served_n)[~served_n.isnan()].clamp(-LONGEST_LOG_RATIO, LONGEST_LOG_RATIO)
    ratio_n = log_ratio_n.exp()
    return {
        "recorded": float(len(ratio_n)), "ratio": float(ratio_n.sum()), "clippedRatio": float(ratio_n.clamp(max=RATIO_LIMIT).sum()),
        "servedKl": float((ratio_n - 1 - log_ratio_n).sum()),
    }  # fmt: skip


def _ratios(current_n: Tensor, advantages_n: Tensor, served_n: Tensor, weights: LossWeights) -> tuple[Tensor, Tensor]:
    # Where nothing was recorded a token stands for its own serving policy: log ratio 0, ratio 1.
    unrecorded_n = served_n.isnan()
    ratio_n = (current_n - torch.where(unrecorded_n, current_n, served_n)).exp()
    return ratio_n, unrecorded_n & (advantages_n < 0) & (current_n.exp() < weights.stale_probability)
