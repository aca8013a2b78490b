"""Bounds of the policy that the CPU trainer publishes, and its trust region around the parent.

The parent is the version that a training continues from. Its distributions at all choices of an iteration are read once, before its
first step; steps shrink as the policy nears ``PARENT_BOUND``. One that ends beyond it, or has turned a kind of prompt to another action
(``TURNED_SHARE``), goes back on the straight line between their weights until the whole iteration is within both. The first generation,
from the base, has no parent, and ``KL_BOUND`` to the base alone.

Actions are told by the first choice of an answer, by its grammar: of free texts they are not measured. A prompt's kind is the likeliest
action of the parent there, which is known in any game. A policy with one action over all prompts has collapsed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from torch import Tensor

from babylon_rl.errors import Diverged
from babylon_rl.models.scoring import Distributions, EncodedSequence
from babylon_rl.training.backends.cpu import COLLAPSED_SHARE, KL_BOUND, PARENT_BOUND, TURNED_SHARE
from babylon_rl.training.backends.cpu.policy import Group, Item, Pack, PackedPolicy, by_pack, choices

KIND_PROMPTS = 20  # a kind with fewer prompts is not measured
MEASURED_PACKS = 8  # for the KL from the base; their mean has a standard error of 0.3 nats


# By sequence, of each token that had alternatives: [M] log-probabilities over the legal tokens, padded by -inf, or the [D] hidden state
# where there was no grammar.
AtChoices = dict[EncodedSequence, list[Tensor]]
ActionShares = tuple[dict[int, float], float | None]


def distributions(hidden_nd: Tensor, head_vd: Tensor, items: Sequence[Item], group: Group) -> list[Distributions]:
    """Distributions of each pack of a group at its choices, from the hidden states there."""
    return [
        Distributions.of(part, head_vd, [items[n].encoded.legal_t[t] for _, n, t in choices(row, items)])
        for part, row in zip(by_pack(hidden_nd, group, items), group, strict=True)
    ]


def read(policy: PackedPolicy, items: Sequence[Item], packs: Sequence[Pack]) -> dict[Pack, Distributions]:
    """Distributions of the policy at all choices of the packs, without gradients: one forward pass."""

    def compute(group: Group) -> list[Distributions]:
        with torch.no_grad():  # holds for a thread alone
            return distributions(policy.hidden(group, items), policy.head, items, group)

    policy.model.eval()
    found = [one for group in policy.each(policy.grouped(packs), compute) for one in group]
    policy.model.train()
    return dict(zip(packs, found, strict=True))


def at_choices(found: Mapping[Pack, Distributions], items: Sequence[Item]) -> AtChoices:
    at: AtChoices = {}
    for row, one in found.items():
        bound, free = iter(() if one.legal_bm is None else one.legal_bm), iter(one.open_od)
        for encoded in (items[n].encoded for n in row.members):
            at[encoded] = [next(free if legal is None else bound) for legal in legal_sets(encoded)]
    return at


def legal_sets(encoded: EncodedSequence) -> list[tuple[int, ...] | None]:
    """The legal tokens at each choice of a sequence, None for the whole vocabulary."""
    return [legal for legal, trains in zip(encoded.legal_t, encoded.trainable_t, strict=True) if trains]


def repacked(at: AtChoices, packs: Sequence[Pack], items: Sequence[Item], head_vd: Tensor) -> dict[Pack, Distributions]:
    """Distributions of other packs, of some of the same sequences."""
    arranged = {}
    for row in packs:
        own = [items[n].encoded for n in row.members]
        spots = [spot for encoded in own for spot in zip(legal_sets(encoded), at[encoded], strict=True)]
        legal, free = [at_choice for among, at_choice in spots if among], [at_choice for among, at_choice in spots if not among]
        legal_bm = torch.nn.utils.rnn.pad_sequence(legal, batch_first=True, padding_value=-math.inf) if legal else None
        bound = [place for place, (among, _) in enumerate(spots) if among]
        arranged[row] = Distributions(bound, legal_bm, torch.stack(free) if free else head_vd[:0])
    return arranged


@dataclass(frozen=True)
class Parent:
    """The version that a training continues from: its adapter's weights, and its distributions by pack."""

    weights: Mapping[str, Tensor]
    at: Mapping[Pack, Distributions]


def read_parent(
    policy: PackedPolicy, items: Sequence[Item], packs: Sequence[Pack], directory: Path | None, at: AtChoices | None = None
) -> Parent:
    """Read the parent: the policy as it is, or the adapter in ``directory`` where earlier iterations have moved the policy.

    ``at`` has the distributions of the policy as it is, if they were read before.
    """
    if directory is None and at:
        return Parent(copied(policy), repacked(at, packs, items, policy.head))
    present = copied(policy)
    if directory is not None:
        set_peft_model_state_dict(policy.model, load_peft_weights(str(directory), device="cpu"))
    parent = Parent(copied(policy), read(policy, items, packs))
    _place(policy, present, present, 0.0)
    return parent


def copied(policy: PackedPolicy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}


def _place(policy: PackedPolicy, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> None:
    """Set the weights to those at ``share`` of the way from ``start`` to ``end``."""
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            parameter.copy_(torch.lerp(start[name], end[name], share))


def weighted_kl(found: Mapping[Pack, Distributions], parent: Mapping[Pack, Distributions], items: Sequence[Item], head_vd: Tensor) -> float:
    """Sum of the exact KL(policy || parent) over the choices of packs, each weighed as in the loss, in nats."""
    return math.fsum(
        items[n].token_weight * kl
        for row, one in found.items()
        for (_, n, _), kl in zip(choices(row, items), one.kl_from(parent[row], head_vd).tolist(), strict=True)
    )


def total_weight(packs: Iterable[Pack], items: Sequence[Item]) -> float:
    return math.fsum(items[n].token_weight * items[n].encoded.trainable_tokens for row in packs for n in row.members)


def step_back(
    policy: PackedPolicy, items: Sequence[Item], packs: Sequence[Pack], parent: Parent
) -> tuple[dict[Pack, Distributions], ActionShares, dict[str, float]]:
    """Move the policy towards its parent until it is within ``PARENT_BOUND`` and ``TURNED_SHARE`` over all packs.

    Returns its distributions, its ``action_shares``, and as metrics ``klParent`` and ``stepBack``, the share of the way back to the parent
    that it went, 0 where it was within.
    """
    end, share, weight = copied(policy), 1.0, total_weight(packs, items)
    while True:
        found = read(policy, items, packs)
        kl = weighted_kl(found, parent.at, items, policy.head) / weight
        shares = action_shares(items, found, parent.at)
        # The KL grows with the square of the way. The parent's own turned share is at most a half: a way back always ends.
        times = max(math.sqrt(max(kl, 0.0) / PARENT_BOUND), (shares[1] or 0.0) / TURNED_SHARE)
        if not times > 1:  # of no number too: it is refused
            return found, shares, {"klParent": kl, "stepBack": 1.0 - share}
        share *= 0.95 / times  # a little less, so that few tries are needed
        _place(policy, parent.weights, end, share)


@dataclass(frozen=True)
class Measured:
    """Measured distance and action shares of a policy.

    ``kl`` is the mean divergence from the base, in nats a choice. ``action_shares`` is the policy's mean probability of each token at the
    first choice of a prompt's answers, empty without grammars. ``turned_share``: of the kinds of prompts with ``KIND_PROMPTS`` or more, the
    largest mean probability of one action other than the parent's; None without such a kind.
    """

    kl: float
    action_shares: dict[int, float]
    turned_share: float | None = None

    @property
    def top_action_share(self) -> float | None:
        """Largest action share, 0 to 1; None when no answer had a grammar."""
        return max(self.action_shares.values(), default=None)

    @property
    def metrics(self) -> dict[str, float]:
        """Measured values under their stored names."""
        values = {"kl": self.kl, "topActionShare": self.top_action_share, "turnedShare": self.turned_share}
        return {name: value for name, value in values.items() if value is not None}


def measure(policy: PackedPolicy, items: Sequence[Item], found: Mapping[Pack, Distributions], shares: ActionShares) -> Measured:
    """Measure a policy by its distributions at all choices, and their ``action_shares``.

    Its exact KL from the base is the mean over the choices, weighed as in the loss, of at most ``MEASURED_PACKS`` evenly spaced packs.
    """
    looked_at = list(found)[:: -(-len(found) // MEASURED_PACKS)]
    policy.model.eval()
    base = zip(looked_at, policy.base_states(looked_at, items), strict=True)
    policy.model.train()
    of_base = {row: distributions(states_nd, policy.head, items, [row])[0] for row, states_nd in base}
    kl = weighted_kl({row: found[row] for row in looked_at}, of_base, items, policy.head)
    return Measured(kl / total_weight(looked_at, items), *shares)


def action_shares(items: Sequence[Item], found: Mapping[Pack, Distributions], parent: Mapping[Pack, Distributions]) -> ActionShares:
    """Mean probability of each action at the first choice of a prompt, weighed as in the loss, and the turned share (``Measured``)."""
    weights, shares, seen = defaultdict[tuple[int, ...], float](float), Counter[int](), set[tuple[int, ...]]()
    kinds, prompts = defaultdict[int, Counter[int]](Counter), Counter[int]()
    for item in items:
        weights[item.encoded.prompt_ids] += item.token_weight * item.encoded.trainable_tokens
    for row, one in found.items():
        spots = choices(row, items)
        for place, n in enumerate(one.bound):
            encoded, token = items[spots[n][1]].encoded, spots[n][2]
            # Spots of an answer are in order: the first one seen of a prompt is that of its action.
            if encoded.prompt_ids in seen or one.legal_bm is None:
                continue
            seen.add(encoded.prompt_ids)
            legal = encoded.legal_t[token] or ()
            weighed = one.legal_bm[place].exp() * weights[encoded.prompt_ids]
            own = dict(zip(legal, weighed.tolist(), strict=False))
            shares.update(own)
            if row in parent and (before := parent[row].legal_bm) is not None:
                kind = legal[int(before[place].argmax())]
                kinds[kind].update(own)
                prompts[kind] += 1
    measured = [(kind, total) for kind, total in kinds.items() if prompts[kind] >= KIND_PROMPTS]
    turned = [total[action] / total.total() for kind, total in measured for action in shares if action != kind]
    return {action: total / shares.total() for action, total in shares.items()}, max(turned, default=None)


def refuse_diverged(measured: Measured, iteration: int) -> None:
    """Raise Diverged, before publication, if a policy is no number, too far from the base, or has collapsed into one action."""
    cure = "Nothing was published. Lower LEARNING_RATE, or train on more windows."
    share = measured.top_action_share
    if share is not None and share > COLLAPSED_SHARE:
        raise Diverged(
            f"After iteration {iteration} one action has {share:.0%} of the policy (bound {COLLAPSED_SHARE:.0%}): it collapsed. {cure} "
            "If it holds, and its agents lost (`batches show --json`: ownTradePnl), it is at the HOLD floor: train from one that reads."
        )
    if not measured.kl <= KL_BOUND:  # NaN included
        raise Diverged(
            f"After iteration {iteration} the policy is {measured.kl:.2f} nats a choice away from its base (bound {KL_BOUND:g}). {cure} "
            "A KL_PENALTY above 0 holds it nearer."
        )
