"""CPU trainer: LoRA with group-relative loss, bounds on its policy, and shared prompts (policy.py).

Loss per token that had alternatives: ``-clip(ratio, 0, 5) * advantage * logp``. The ratio is to the serving policy where its
log-probabilities were recorded (CISPO: the ratio carries no gradient), else 1, which is group-relative REINFORCE. This is exactly
openpipe-art's default loss when three guards are off (``ART_WEIGHTS``). The guards: a negative advantage has no effect once its token is
below ``stale_probability``; an entropy bonus; a penalty on the exact KL divergence from the base over the legal tokens.

The bounds are measured after an iteration on some of its rows, against the base itself, so that they are known with KL_PENALTY=0 too.
Actions are recognised by the grammar of an answer: of free texts action shares are not measured. Training stops before publication when the
loss is not finite, or the policy leaves its bounds.

Pre-flight counts trainable tokens with the tokenizer alone. The result is deterministic for a seed on one machine, whatever the number of
threads. A step accumulates the gradients of several packs, then clips and applies them. It has at least GRADIENT_ACCUMULATION_STEPS times
``DEVICE_PACKS`` packs, and BATCH_SIZE sequences for each of these. Packs are not split, because their shared prefix is computed once.
"""

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import Diverged, NothingToTrain
from babylon_rl.heap import return_freed_memory
from babylon_rl.models.base_model import base_model_dir, base_model_name, quiet_loading
from babylon_rl.models.checkpoints import BaseIdentity, base_identity, saving_weights
from babylon_rl.models.device import PROCESSOR, Device, best_device
from babylon_rl.models.row_attention import joined
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.training.backends.base_tokens import BaseTokens
from babylon_rl.training.backends.cpu.policy import (
    ALPHA,
    FROZEN_SHARE,
    KEPT_BYTES,
    RANK,
    TARGETS,
    BaseCache,
    BaseStates,
    Group,
    Item,
    Pack,
    PackedPolicy,
    Spot,
    choices,
    load_policy,
    make_items,
    needed_ids,
    pack,
    plan_items,
)
from babylon_rl.training.backends.protocol import (
    CPU,
    IterationResult,
    LocalTrainer,
    OnStep,
    RunContext,
    StepMetrics,
    TrainIteration,
    TrainPlan,
    TrainSequence,
)

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
    """Refuse an optimizer step that would damage the weights.

    Raises:
        Diverged: the loss or the gradient's norm is not finite.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"Step {step} of iteration {iteration} has loss {loss} and gradient norm {norm}; nothing was published. Lower LEARNING_RATE."
        )


LEARNING_RATE = 3e-3
ENTROPY_BONUS = 0.05
FINAL_RATE_SHARE = 0.1  # of LEARNING_RATE, at the end of the last iteration
DEVICE_PACKS = 3
# Means over the tokens with recorded log-probabilities, of the policy in training to the one that served them.
SERVED = ("ratio", "clippedRatio", "servedKl")
OPTIMIZER_STATE = "trainer_state.safetensors"
_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


class CpuTrainer(LocalTrainer):
    """Trainer on this machine; ``threads`` None takes ``usable_cores``.

    ``device`` None is the processor with TRAINER=cpu, else ``best_device()``.
    """

    name = CPU

    def __init__(self, settings: Settings, threads: int | None = None, device: Device | None = None) -> None:
        self._device = PROCESSOR if device is None and settings.trainer == CPU else device
        self.base_model = settings.local_base_model or base_model_name(settings)
        self._settings = settings
        self._base_dir = base_model_dir(settings)
        self._threads = threads
        self._room = KEPT_BYTES if settings.epochs > 1 else 0
        self._kept = BaseCache(self._room)

    def base_identity(self) -> BaseIdentity:
        """Identity of the base model."""
        return base_identity(self._base_dir, self.base_model)

    def tokenizer_dir(self) -> Path | None:
        """Directory of the base model."""
        return self._base_dir

    def hyperparameters(self) -> dict[str, Any]:
        """Implement Trainer.hyperparameters."""
        return {
            "learning_rate": self._settings.learning_rate or LEARNING_RATE, "final_rate_share": FINAL_RATE_SHARE, "optimizer": "AdamW",
            "entropy_bonus": ENTROPY_BONUS, "ratio_limit": RATIO_LIMIT, "stale_probability": STALE_PROBABILITY,
            "device_packs": DEVICE_PACKS, "lora_rank": RANK, "lora_alpha": ALPHA, "lora_targets": list(TARGETS),
            "frozen_share": FROZEN_SHARE,
        }  # fmt: skip

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Implement Trainer.prepare."""
        return plan_items(BaseTokens(self._settings, str(self._base_dir)).tokenizer, sequences)

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Implement Trainer.train.

        Raises:
            Diverged: the loss is not finite, the policy is too far from its base, or it collapsed into one action.
            NothingToTrain: no sequence has a token with alternatives.
            CheckpointError: the parent does not fit the base.
        """
        try:
            return self._train(iteration, parent, out, on_step)
        finally:
            # The model is gone. Kept for the next one, the heap would grow with every iteration, as each leaves some of it in pieces.
            gc.collect()
            return_freed_memory()

    def _train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        # One thread for each group of rows (policy.py): results do not depend on the number of threads.
        set_threads(1)
        import torch

        torch.manual_seed(iteration.seed)
        device = self._device or best_device()
        tokenizer, model = load_policy(self._base_dir, parent, device=device)
        items, left_out = make_items(tokenizer, iteration.sequences)
        if not items:
            raise NothingToTrain(f"No sequence of iteration {iteration.step} can be trained: {dict(left_out)}.")
        if iteration.step == 1:
            self._kept = BaseCache(self._room)
        # The optimizer state of the iteration before lies with the parent.
        run = IterationRun(PackedPolicy(model, self._threads or usable_cores(), self._kept, device), items, iteration, self._settings)
        run.restore(parent)
        result = run.train(on_step)
        with quiet_loading(), saving_weights(out):
            # Without this peft asks the model hub whether the base's vocabulary is as it was.
            model.save_pretrained(str(out), save_embedding_layers=False)
            run.save(out)
        (out / "README.md").unlink(missing_ok=True)  # the model card is written on publication
        metrics = result.metrics | {f"leftOut_{reason}": float(count) for reason, count in left_out.items()}
        return IterationResult(metrics, result.trainable_tokens, result.loss, len(items))


def optimizer_steps(packs: Sequence[Pack], settings: TrainingSettings) -> Iterator[list[Pack]]:
    """Group packs into optimizer steps, in order; the last step may be smaller."""
    least_packs = DEVICE_PACKS * settings.gradient_accumulation_steps
    least_sequences = least_packs * settings.batch_size
    step: list[Pack] = []
    for row in packs:
        step.append(row)
        if len(step) >= least_packs and sum(len(member.members) for member in step) >= least_sequences:
            yield step
            step = []
    if step:
        yield step


class IterationRun:
    """Training of a policy on the items of one iteration."""

    def __init__(
        self, policy: PackedPolicy, items: Sequence[Item], iteration: TrainIteration, settings: Settings, weights: LossWeights | None = None
    ) -> None:
        import torch

        self._policy, self._items, self._iteration, self._settings = policy, items, iteration, settings
        self._rate = settings.learning_rate or LEARNING_RATE
        self._optimizer = torch.optim.AdamW(policy.parameters.values(), lr=self._rate, weight_decay=0.0)
        self._weights = weights or LossWeights(ENTROPY_BONUS, settings.kl_penalty)

    def train(self, on_step: OnStep) -> IterationResult:
        """Take every optimizer step, then measure the policy. Raises Diverged: the loss or the policy left its bounds."""
        packs = pack([item.encoded for item in self._items])
        plan = list(self._plan(packs))
        totals, told, tokens = Counter[str](), Counter[str](), 0
        at_start: dict[str, float] = {}
        self._policy.model.train()
        for number, chosen in enumerate(plan, start=1):
            began_s = time.perf_counter()
            # The learning rate decays over all iterations, not within one.
            rate = self._set_rate((self._iteration.step - 1 + (number - 1) / len(plan)) / self._iteration.steps, number)
            step = self.take_step(chosen, number) | {"learningRate": rate}
            step["tokensPerSecond"] = sum(row.tokens for row in chosen) / (time.perf_counter() - began_s)
            tokens += sum(self._items[member].encoded.trainable_tokens for row in chosen for member in row.members)
            totals.update(step)
            told.update(step.keys())
            if number == 1:  # before any update: how far the policy that served is from the one that is trained on
                at_start = {f"{name}AtStart": step[name] for name in SERVED if name in step}
            loss = step.pop("loss")
            on_step(StepMetrics(self._iteration.step, number, len(plan), loss, tokens, step))
        # Bounds are checked on the finished policy; a violation publishes nothing.
        measured = measure(self._policy, self._items, packs)
        refuse_diverged(measured, self._iteration.step)
        means = {name: total / told[name] for name, total in totals.items()}
        loss = means.pop("loss")
        means |= at_start | measured.metrics  # kl of what came out, known without a penalty too
        means["optimizerSteps"] = float(len(plan))
        means["prefixSharing"] = sum(len(needed_ids(i.encoded)) for i in self._items) / sum(p.tokens for p in packs)
        return IterationResult(means, tokens, loss)

    def take_step(self, packs: Sequence[Pack], number: int = 1) -> dict[str, float]:
        """Take one optimizer step and return its metrics.

        Loss, entropy, clipFraction and (with a penalty) KL are means over the tokens; gradientNorm is before clipping. With recorded
        log-probabilities: recordedShare of the tokens, and of these the means of SERVED.
        """
        import torch

        step = self.gradients(packs)
        if recorded := step.pop("recorded"):
            tokens = sum(self._items[member].encoded.trainable_tokens for one in packs for member in one.members)
            step |= {"recordedShare": recorded / tokens} | {name: step[name] / recorded for name in SERVED}
        else:
            step = {name: value for name, value in step.items() if name not in SERVED}
        norm = float(torch.nn.utils.clip_grad_norm_(self._policy.parameters.values(), self._settings.max_grad_norm))
        # Before the step, which would carry such a number into the weights.
        refuse_no_number(step["loss"], norm, number, self._iteration.step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return step | {"gradientNorm": norm}

    def gradients(self, packs: Sequence[Pack]) -> dict[str, float]:
        """Accumulate the gradients of some packs as of one batch."""
        # Of the whole step: each group's gradient is divided by it, so that their sum is that of one batch, however it was packed.
        tokens = sum(self._items[member].encoded.trainable_tokens for row in packs for member in row.members)
        # States of the base are needed only for the KL penalty.
        of_base = dict(zip(packs, self._policy.base_states(packs, self._items), strict=True)) if self._weights.kl else {}
        totals = Counter[str]()
        # Added in the order of the groups, not in that in which threads finish: sums of floats depend on it.
        for values, gradients in self._policy.each(self._policy.grouped(packs), lambda group: self._gradient(group, tokens, of_base)):
            totals.update(values)
            for parameter, gradient in zip(self._policy.parameters.values(), gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return dict(totals)

    def _gradient(
        self, group: Group, tokens: int, of_base: Mapping[Pack, BaseStates]
    ) -> "tuple[dict[str, float], tuple[Tensor | None, ...]]":
        import torch

        spots = [spot for row in group for spot in choices(row, self._items)]
        bases = [of_base[row] for row in group] if of_base else []
        lower = joined([base.lower for base in bases], [row.unread for row in group]) if bases else None
        hidden_nd = self._policy.hidden(group, self._items, lower)
        logprobs_n, entropy_n = self._policy.values(hidden_nd, self._items, spots)
        kl_n = None
        if bases:
            kl_n = self._policy.divergence(hidden_nd, torch.cat([base.at_choices_nd for base in bases]), self._items, spots)
        weight_n, advantages_n, served_n = self._targets(spots, tokens)
        loss = (weight_n * token_loss(logprobs_n, entropy_n, advantages_n, served_n, kl_n, self._weights)).sum()
        # Not backward(): groups are computed by several threads, and would add to the same .grad in the order in which they finish.
        gradients = torch.autograd.grad(loss, list(self._policy.parameters.values()), allow_unused=True)
        metrics = {
            "loss": loss.item(),
            "entropy": float((weight_n * entropy_n.detach()).sum()),
            "clipFraction": float(clipped(logprobs_n, advantages_n, served_n, self._weights).sum()) / tokens,
        } | served_sums(logprobs_n, served_n)
        return (metrics if kl_n is None else metrics | {"kl": float((weight_n * kl_n.detach()).sum())}), gradients

    def _targets(self, spots: Sequence[Spot], tokens: int) -> "tuple[Tensor, Tensor, Tensor]":
        """[N] weights (their sum over a step's tokens is about 1), advantages and recorded log-probabilities."""
        import torch

        of = self._items
        rows = [(of[n].token_weight / tokens, of[n].advantage, of[n].served_t[t]) for _, n, t in spots]
        weight_n, advantages_n, served_n = torch.tensor(rows, device=self._policy.head.device).T
        return weight_n, advantages_n, served_n

    def _plan(self, packs: Sequence[Pack]) -> Iterator[list[Pack]]:
        rng = random.Random(self._iteration.seed)
        for _ in range(self._iteration.passes):
            order = list(packs)
            rng.shuffle(order)
            yield from optimizer_steps(order, self._settings)

    def _set_rate(self, done: float, number: int) -> float:
        # Only in the first iteration: the optimizer's state goes on from one to the next, so it is warm in the others.
        warm = min(1.0, number / (self._settings.warmup_steps + 1)) if self._iteration.step == 1 else 1.0
        rate = self._rate * warm * (1 - (1 - FINAL_RATE_SHARE) * done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def restore(self, parent: Path | None) -> None:
        """Restore the optimizer state that the previous iteration saved."""
        # A published parent has no state (publishing.py leaves it out): each version begins with a new optimizer.
        if parent is None or not (parent / OPTIMIZER_STATE).is_file() or self._iteration.step == 1:
            return
        from safetensors.torch import load_file

        saved = load_file(parent / OPTIMIZER_STATE)
        for name, parameter in self._policy.parameters.items():
            if f"{name}:exp_avg" in saved:
                # The number of steps stays in the processor's memory; an earlier iteration may have been trained on another device.
                state = {key: saved[f"{name}:{key}"].to(parameter) for key in _STATE_KEYS[1:]}
                self._optimizer.state[parameter] = state | {"step": saved[f"{name}:step"]}

    def save(self, out: Path) -> None:
        """Save the optimizer state for the next iteration."""
        from safetensors.torch import save_file

        of = self._optimizer.state
        states = {name: of[parameter] for name, parameter in self._policy.parameters.items() if of[parameter]}
        tensors = {f"{name}:{key}": state[key].contiguous() for name, state in states.items() for key in _STATE_KEYS}
        save_file(tensors, out / OPTIMIZER_STATE)
