"""The loss of the CPU trainer, on the tokens that had alternatives.

Per token: ``-min(ratio, 5) * advantage * logp`` with the ratio to the serving policy where its log-probabilities were recorded
(CISPO: the ratio carries no gradient), and ratio 1, which is group-relative REINFORCE, where they were not. Three guards keep the
policy from collapsing into one action: a negative advantage stops pushing once its token is below ``STALE_PROBABILITY``; an entropy
bonus; and a penalty on the exact KL divergence from the base over the legal tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RATIO_LIMIT = 5.0
STALE_PROBABILITY = 0.05


@dataclass(frozen=True)
class LossWeights:
    """``entropy`` and ``kl`` are in units of the policy term, per token."""

    entropy: float
    kl: float


def token_loss(
    logprobs_n: "Tensor",
    entropy_n: "Tensor",
    advantages_n: "Tensor",
    served_n: "Tensor",
    kl_n: "Tensor | None",
    weights: LossWeights,
) -> "Tensor":
    """[N] losses of N tokens.

    Args:
        logprobs_n: under the policy in training, with gradients.
        entropy_n: over the tokens that were legal, in nats, with gradients.
        advantages_n: of each token's episode.
        served_n: recorded log-probabilities, NaN where there are none.
        kl_n: divergence of the policy from the base at each token, with gradients; None when its weight is 0.
    """
    import torch

    current = logprobs_n.detach()
    ratio = torch.where(
        torch.isnan(served_n), torch.ones_like(current), (current - torch.nan_to_num(served_n)).exp().clamp(max=RATIO_LIMIT)
    )
    stale = (advantages_n < 0) & (current.exp() < STALE_PROBABILITY)
    push = torch.where(stale, torch.zeros_like(ratio), ratio * advantages_n)
    loss = -push * logprobs_n - weights.entropy * entropy_n
    if kl_n is not None:
        loss = loss + weights.kl * kl_n
    return loss
