"""Loss of the CPU trainer, on the tokens that had alternatives, and bounds on its policy.

Per token: ``-clip(ratio, 0, 5) * advantage * logp``. The ratio is to the serving policy where its log-probabilities were recorded (CISPO:
the ratio carries no gradient), else 1, which is group-relative REINFORCE. This is exactly openpipe-art's default loss when three guards
are off (``ART_WEIGHTS``). The guards: a negative advantage has no effect once its token is below ``stale_probability``; an entropy bonus;
a penalty on the exact KL divergence from the base over the legal tokens.

The bounds are measured after an iteration on some of its rows, against the base itself, so that they are known with KL_PENALTY=0 too.
Actions are recognised by the grammar of an answer: of free texts action shares are not measured.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from babylon_rl.errors import Diverged
from babylon_rl.training.backends.cpu.policy import Item, Pack, PackedPolicy, choices

if TYPE_CHECKING:
    from torch import Tensor

EPSILON, EPSILON_HIGH = 1.0, 4.0
RATIO_LIMIT = 1 + EPSILON_HIGH
STALE_PROBABILITY = 0.05
LONGEST_LOG_RATIO = 50.0  # so that sums stay finite
COLLAPSED_SHARE = 0.95  # as COLLAPSE of the gate, there of decisions, here of probability
KL_BOUND = 4.0  # nats a choice: the base would take such answers one time in 50; trained versions lie at 1
MEASURED_PACKS = 8  # each is computed twice, as the base and as trained; their mean KL has a standard error of 0.3 nats


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, in units of the policy term, per token.

    0 switches a term off. The ratio is clipped to [1 - ``epsilon``, 1 + ``epsilon_high``]. A token below ``stale_probability`` is not
    pushed down further, which affects negative advantages only.
    """

    entropy: float
    kl: float
    stale_probability: float = STALE_PROBABILITY
    epsilon: float = EPSILON
    epsilon_high: float = EPSILON_HIGH


ART_WEIGHTS = LossWeights(entropy=0.0, kl=0.0, stale_probability=0.0)


def token_loss(
    logprobs_n: "Tensor", entropy_n: "Tensor", advantages_n: "Tensor", served_n: "Tensor", kl_n: "Tensor | None", weights: LossWeights
) -> "Tensor":
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


def clipped(logprobs_n: "Tensor", advantages_n: "Tensor", served_n: "Tensor", weights: LossWeights) -> "Tensor":
    """[N] booleans: the ratio left its bounds, or the guard of negative advantages applies."""
    ratio_n, stale_n = _ratios(logprobs_n.detach(), advantages_n, served_n, weights)
    return stale_n | (ratio_n < 1 - weights.epsilon) | (ratio_n > 1 + weights.epsilon_high)


def served_sums(logprobs_n: "Tensor", served_n: "Tensor") -> dict[str, float]:
    """Sums over the tokens with recorded log-probabilities: their number, ratio and divergence.

    The ratio is that of the loss before it is clipped. The divergence, ratio - 1 - log ratio, estimates KL(serving policy || current one)
    without bias and is never negative (Schulman, "Approximating KL divergence", k3).
    """
    log_ratio_n = (logprobs_n.detach() - served_n)[~served_n.isnan()].clamp(-LONGEST_LOG_RATIO, LONGEST_LOG_RATIO)
    ratio_n = log_ratio_n.exp()
    return {"recorded": float(len(ratio_n)), "ratio": float(ratio_n.sum()), "servedKl": float((ratio_n - 1 - log_ratio_n).sum())}


def _ratios(current_n: "Tensor", advantages_n: "Tensor", served_n: "Tensor", weights: LossWeights) -> "tuple[Tensor, Tensor]":
    import torch

    # Where nothing was recorded a token stands for its own serving policy: log ratio 0, ratio 1.
    ratio_n = (current_n - torch.where(torch.isnan(served_n), current_n, served_n)).exp()
    return ratio_n, (advantages_n < 0) & (current_n.exp() < weights.stale_probability)


@dataclass(frozen=True)
class Measured:
    """Measured distance and action shares of a policy.

    ``kl`` is the mean divergence from the base, in nats a choice. ``action_shares`` is the policy's mean probability of each token at the
    first choice of an answer, empty without grammars.
    """

    kl: float
    action_shares: dict[int, float]

    @property
    def top_action_share(self) -> float | None:
        """Largest action share, 0 to 1; None when no answer had a grammar."""
        return max(self.action_shares.values(), default=None)

    @property
    def metrics(self) -> dict[str, float]:
        """Measured values under their stored names."""
        share = self.top_action_share
        return {"kl": self.kl} if share is None else {"kl": self.kl, "topActionShare": share}


def measure(policy: PackedPolicy, items: Sequence[Item], packs: Sequence[Pack]) -> Measured:
    """Measure up to ``MEASURED_PACKS`` packs (one row each)."""
    import torch

    from babylon_rl.models.scoring import legal_logprobs

    shares: Counter[int] = Counter()
    kl, spots_seen, firsts_seen = 0.0, 0, 0
    policy.model.eval()
    # An evenly spaced sample of the packs.
    looked_at = packs[:: -(-len(packs) // MEASURED_PACKS)]
    base = policy.base_states(looked_at, items)
    own = policy.states(looked_at, items, base)
    with torch.no_grad():
        for packed, hidden_nd, of_base in zip(looked_at, own, base, strict=True):
            spots = choices(packed, items)
            kl += float(policy.divergence(hidden_nd, of_base.at_choices_nd, items, spots).sum())
            spots_seen += len(spots)
            # The first choice of each answer under a grammar decides its action.
            first = {(m, n): place for place, (m, n, _) in reversed(list(enumerate(spots)))}
            places = [place for place in first.values() if items[spots[place][1]].encoded.legal_t[spots[place][2]] is not None]
            if places:
                legal_n = [items[n].encoded.legal_t[t] or () for _, n, t in (spots[place] for place in places)]
                logprobs_nm = legal_logprobs(hidden_nd[places], policy.head, legal_n)
                for tokens, row in zip(legal_n, logprobs_nm.exp().tolist(), strict=True):
                    shares.update(dict(zip(tokens, row, strict=False)))
                firsts_seen += len(places)
    policy.model.train()
    return Measured(kl / spots_seen, {token: total / firsts_seen for token, total in shares.items()})


def refuse_diverged(measured: Measured, iteration: int) -> None:
    """Refuse a policy outside its bounds, before publication.

    Raises:
        Diverged: the policy is no number, too far from the base, or has collapsed into one action.
    """
    cure = "Nothing was published. Lower LEARNING_RATE, or train on more windows."
    share = measured.top_action_share
    if share is not None and share > COLLAPSED_SHARE:
        raise Diverged(
            f"After iteration {iteration} one action has {share:.0%} of the policy (bound {COLLAPSED_SHARE:.0%}): it collapsed. {cure}"
        )
    if not measured.kl <= KL_BOUND:  # NaN included
        raise Diverged(
            f"After iteration {iteration} the policy is {measured.kl:.2f} nats a choice away from its base (bound {KL_BOUND:g}). {cure} "
            "A KL_PENALTY above 0 holds it nearer."
        )


def refuse_no_number(loss: float, norm: float, step: int, iteration: int) -> None:
    """Refuse an optimizer step that would damage the weights. Raises Diverged: the loss or the gradient's norm is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"Step {step} of iteration {iteration} has loss {loss} and gradient norm {norm}; nothing was published. Lower LEARNING_RATE."
        )
