"""Bounds on a policy before publication: finite, near the base, several actions.

They are measured after an iteration on some of its rows, against the base itself, so that they are known with KL_PENALTY=0 too. Actions
are recognised by the grammar of an answer. In free texts the words of the action are unknown, so action shares are not measured.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.errors import Diverged
from babylon_rl.training.backends.cpu.items import Item
from babylon_rl.training.backends.cpu.policy import Pack, PackedPolicy, choices

COLLAPSED_SHARE = 0.95
KL_BOUND = 4.0  # nats a choice: the base would take such answers one time in 50; trained versions lie at 1
MEASURED_PACKS = 12


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
    own, base = policy.states(looked_at, items), policy.states(looked_at, items, of_base=True)
    with torch.no_grad():
        for packed, hidden_nd, reference_nd in zip(looked_at, own, base, strict=True):
            spots = choices(packed, items)
            kl += float(policy.divergence(hidden_nd, reference_nd, items, spots).sum())
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
    """Refuse an optimizer step that would damage the weights.

    Raises:
        Diverged: the loss or the gradient's norm is not finite.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"Step {step} of iteration {iteration} has loss {loss} and gradient norm {norm}; nothing was published. Lower LEARNING_RATE."
        )
