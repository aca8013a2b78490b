"""CPU trainer: LoRA with group-relative loss (loss.py), a trust region and bounds (bounds.py), and shared prompts (policy.py).

Learning rate and entropy bonus follow from the generation of the version in training: its first one, from the base, has all to learn; a
later one has most of it to lose. Training stops before publication when the loss is not finite, or the policy leaves its bounds.

Pre-flight counts trainable tokens with the tokenizer alone. The result is deterministic for a seed on one machine, whatever the number of
threads. A step accumulates the gradients of several packs, then clips and applies them. It has at least GRADIENT_ACCUMULATION_STEPS times
``DEVICE_PACKS`` packs, and BATCH_SIZE sequences for each of these. Packs are not split, because their shared prefix is computed once.
"""

import gc
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from babylon_rl.errors import Diverged, NothingToTrain
from babylon_rl.heap import return_freed_memory
from babylon_rl.models.base_model import base_model_dir, base_model_name, quiet_loading
from babylon_rl.models.checkpoints import BaseIdentity, base_identity, saving_weights
from babylon_rl.models.device import PROCESSOR, Device, best_device
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.training.backends.base_tokens import BaseTokens
from babylon_rl.training.backends.cpu import PARENT_BOUND, RATIO_LIMIT, bounds
from babylon_rl.training.backends.cpu.answers import GAIN, MOST_TARGET, weigh_answers
from babylon_rl.training.backends.cpu.loss import STALE_PROBABILITY, LossWeights, clipped, served_sums, token_loss
from babylon_rl.training.backends.cpu.policy import (
    ALPHA,
    ATTENTION,
    FEED_FORWARD,
    FROZEN_SHARE,
    RANK,
    Group,
    Item,
    Pack,
    PackedPolicy,
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
    OnStep,
    RunContext,
    StepMetrics,
    Trainer,
    TrainIteration,
    TrainPlan,
    TrainSequence,
)

# By generation, the last one for all later ones too: the most that a step may have, as the trust region allows it.
LEARNING_RATES = (3e-3, 3e-4)
# Of an adapter with feed-forward layers, which at a higher one may unlearn what it has begun to read.
LEARNING_RATES_OF_ALL = (2e-3, 3e-4)
# The first generation explores more, so that a base that holds on most prompts tries something else.
ENTROPY_BONUSES = (0.05, 0.03)
# In the first generation scripts play beside the base. 1: no answer of theirs is pushed down, which would teach to do nothing.
STALE_PROBABILITIES = (1.0, STALE_PROBABILITY)
FINAL_RATE_SHARE = 0.1  # of LEARNING_RATE, at the end of the last iteration
DEVICE_PACKS = 3
# The KL from the parent that sets the rate is the mean of so many steps: the few dozen choices of one step tell it badly.
KL_STEPS = 3
# Means over the tokens with recorded log-probabilities, of the policy in training to the one that served them.
SERVED = ("ratio", "clippedRatio", "servedKl")
OPTIMIZER_STATE = "trainer_state.safetensors"
_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


class CpuTrainer(Trainer):
    """Trainer on this machine; ``device`` None is the processor with TRAINER=cpu, else ``best_device()``."""

    name = CPU

    def __init__(self, settings: Settings, threads: int | None = None, device: Device | None = None) -> None:
        self._device = PROCESSOR if device is None and settings.trainer == CPU else device
        self.base_model = settings.local_base_model or base_model_name(settings)
        self._settings = settings
        self._base_dir = base_model_dir(settings)
        self._threads = threads

    def base_identity(self) -> BaseIdentity:
        return base_identity(self._base_dir, self.base_model)

    def tokenizer_dir(self) -> Path | None:
        return self._base_dir

    def hyperparameters(self, generation: int) -> dict[str, Any]:
        return {
            "learning_rate": rate_of(self._settings, generation),
            "final_rate_share": FINAL_RATE_SHARE, "optimizer": "AdamW",
            "entropy_bonus": of_generation(ENTROPY_BONUSES, generation), "ratio_limit": RATIO_LIMIT, "answer_gain": GAIN,
            "most_target": MOST_TARGET, "stale_probability": of_generation(STALE_PROBABILITIES, generation), "parent_bound": PARENT_BOUND,
            "device_packs": DEVICE_PACKS, "lora_rank": RANK, "lora_alpha": ALPHA, "frozen_share": FROZEN_SHARE,
        }  # fmt: skip

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        return plan_items(BaseTokens(self._settings, str(self._base_dir)).tokenizer, sequences)

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        try:
            return self._train(iteration, parent, out, on_step)
        finally:
            # The model is gone. Kept for the next one, the heap would grow with every iteration, as each leaves some of it in pieces.
            gc.collect()
            return_freed_memory()

    def _train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        # One thread for each group of rows (policy.py): results do not depend on the number of threads.
        set_threads(1)
        torch.manual_seed(iteration.seed)
        device = self._device or best_device()
        tokenizer, model = load_policy(self._base_dir, parent, device=device, targets=new_targets(self._settings.epochs))
        items, left_out = make_items(tokenizer, iteration.sequences)
        if not items:
            raise NothingToTrain(f"No sequence of iteration {iteration.step} can be trained: {dict(left_out)}.")
        policy = PackedPolicy(model, self._threads or usable_cores(), device)
        # One pass gives the weights of answers and, of a policy that is the parent still, its distributions.
        replayed = any(item.group for item in items)
        at = bounds.at_choices(bounds.read(policy, items, pack([item.encoded for item in items])), items) if replayed else None
        items = weigh_answers(items, at or {}, left_out)
        run = IterationRun(policy, items, iteration, self._settings, at=at)
        del at  # the run lets go of it once it is read
        run.restore(parent)
        result = run.train(on_step)
        with quiet_loading(), saving_weights(out):
            # Without this peft asks the model hub whether the base's vocabulary is as it was.
            model.save_pretrained(str(out), save_embedding_layers=False)
            run.save(out)
        (out / "README.md").unlink(missing_ok=True)  # the model card is written on publication
        metrics = result.metrics | {f"leftOut_{reason}": float(count) for reason, count in left_out.items()}
        answers = [item.group for item in items if item.group]
        metrics |= {"answers": float(len(answers))} if answers else {}
        return IterationResult(metrics, result.trainable_tokens, result.loss, len(items) - len(answers) + len(set(answers)))


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


def new_targets(epochs: int) -> tuple[str, ...]:
    """Modules that a new adapter changes.

    More of them learn more in several passes; after one pass the result depends more on the seed.
    """
    return ATTENTION if epochs == 1 else (*ATTENTION, *FEED_FORWARD)


def rate_of(settings: TrainingSettings, generation: int) -> float:
    """The highest learning rate of a generation: LEARNING_RATE, or by what a new adapter changes."""
    own = LEARNING_RATES if new_targets(settings.epochs) == ATTENTION else LEARNING_RATES_OF_ALL
    return settings.learning_rate or of_generation(own, generation)


def of_generation(values: Sequence[float], generation: int) -> float:
    """The value of a generation, from 1; of later ones than there are values, the last."""
    return values[min(generation, len(values)) - 1]


def within_reach(done: float, kl: float) -> float:
    """Share of the planned rate that keeps the remaining steps within the trust region; at most 1.

    The KL grows with the square of the way, and the way with the rates of the steps. So this is the share of the way to the bound that is
    left, over the share of the planned rates that is left: the last data count too, whatever the game's scores move.
    """
    fall = 1 - FINAL_RATE_SHARE
    planned_left = 1 - (done - fall * done**2 / 2) / (1 - fall / 2)
    return min(1.0, max(0.0, 1 - math.sqrt(max(kl, 0.0) / PARENT_BOUND)) / planned_left)


class IterationRun:
    def __init__(
        self, policy: PackedPolicy, items: Sequence[Item], iteration: TrainIteration, settings: Settings,
        weights: LossWeights | None = None, at: bounds.AtChoices | None = None,
    ) -> None:  # fmt: skip
        self._at = at
        self._policy, self._items, self._iteration, self._settings = policy, items, iteration, settings
        self._rate = rate_of(settings, iteration.generation)
        self._parent: bounds.Parent | None = None
        self._kl_of_steps = deque[float](maxlen=KL_STEPS)
        self._optimizer = torch.optim.AdamW(policy.parameters.values(), lr=self._rate, weight_decay=0.0)
        entropy, stale = (of_generation(values, iteration.generation) for values in (ENTROPY_BONUSES, STALE_PROBABILITIES))
        self._weights = weights or LossWeights(entropy, settings.kl_penalty, stale)

    def train(self, on_step: OnStep) -> IterationResult:
        """Take the optimizer steps within the trust region, then measure the policy.

        Raises Diverged: the loss or the policy left its bounds.
        """
        packs = pack([item.encoded for item in self._items])
        if self._iteration.generation > 1:
            moved = self._iteration.origin if self._iteration.step > 1 else None
            self._parent = bounds.read_parent(self._policy, self._items, packs, moved, self._at)
            self._at = None
        rng, plan = random.Random(self._iteration.seed), list[list[Pack]]()
        for _ in range(self._iteration.passes):
            order = list(packs)
            rng.shuffle(order)
            plan += optimizer_steps(order, self._settings)
        totals, told, tokens = Counter[str](), Counter[str](), 0
        at_start: dict[str, float] = {}
        self._policy.model.train()
        for number, chosen in enumerate(plan, start=1):
            began_s = time.perf_counter()
            step = self.take_step(chosen, number, len(plan))
            step["tokensPerSecond"] = sum(row.tokens for row in chosen) / (time.perf_counter() - began_s)
            tokens += sum(self._items[member].encoded.trainable_tokens for row in chosen for member in row.members)
            totals.update(step)
            told.update(step.keys())
            if number == 1:  # before any update: how far the policy that served is from the one that is trained on
                at_start = {f"{name}AtStart": step[name] for name in SERVED if name in step}
            loss = step.pop("loss")
            on_step(StepMetrics(self._iteration.step, number, len(plan), loss, tokens, step))
        if self._parent is None:
            found, within = bounds.read(self._policy, self._items, packs), dict[str, float]()
            shares = bounds.action_shares(self._items, found, {})
        else:
            found, shares, within = bounds.step_back(self._policy, self._items, packs, self._parent)
        measured = bounds.measure(self._policy, self._items, found, shares)
        bounds.refuse_diverged(measured, self._iteration.step)
        means = {name: total / told[name] for name, total in totals.items()}
        loss = means.pop("loss")
        means |= at_start | measured.metrics | within  # of what came out, kl known without a penalty too
        means["optimizerSteps"] = float(told["loss"])
        means["prefixSharing"] = sum(len(needed_ids(i.encoded)) for i in self._items) / sum(p.tokens for p in packs)
        return IterationResult(means, tokens, loss)

    def take_step(self, packs: Sequence[Pack], number: int, of: int) -> dict[str, float]:
        """Take optimizer step ``number`` of ``of`` in this iteration, and return its metrics.

        Loss, entropy, clipFraction and (with a penalty) KL are means over the tokens; gradientNorm is before clipping. With recorded
        log-probabilities: recordedShare of the tokens, and of these the means of SERVED. With a parent: klParent before the step.
        """
        step = self.gradients(packs)
        self._kl_of_steps.append(step.get("klParent", 0.0))
        step["learningRate"] = self._set_rate((self._iteration.step - 1 + (number - 1) / of) / self._iteration.steps, number)
        if recorded := step.pop("recorded"):
            tokens = sum(self._items[member].encoded.trainable_tokens for one in packs for member in one.members)
            step |= {"recordedShare": recorded / tokens} | {name: step[name] / recorded for name in SERVED}
        else:
            step = {name: value for name, value in step.items() if name not in SERVED}
        norm = float(torch.nn.utils.clip_grad_norm_(self._policy.parameters.values(), self._settings.max_grad_norm))
        # Before the step, which would carry such a number into the weights.
        if not (math.isfinite(step["loss"]) and math.isfinite(norm)):
            raise Diverged(
                f"Step {number} of iteration {self._iteration.step} has loss {step['loss']} and gradient norm {norm}; nothing was "
                "published. Lower LEARNING_RATE."
            )
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
        if self._parent is not None:
            return {**totals, "klParent": totals["klParent"] / bounds.total_weight(packs, self._items)}
        return dict(totals)

    def _gradient(self, group: Group, tokens: int, of_base: Mapping[Pack, Tensor]) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        spots = [spot for row in group for spot in choices(row, self._items)]
        bases = [of_base[row] for row in group] if of_base else []
        hidden_nd = self._policy.hidden(group, self._items)
        logprobs_n, entropy_n = self._policy.values(hidden_nd, self._items, spots)
        kl_n = None
        if bases:
            kl_n = self._policy.divergence(hidden_nd, torch.cat(bases), self._items, spots)
        # Weights, whose sum over a step's tokens is about 1, advantages and recorded log-probabilities.
        of = self._items
        rows = [(of[n].token_weight / tokens, of[n].advantage, of[n].served_t[t]) for _, n, t in spots]
        weight_n, advantages_n, served_n = torch.tensor(rows, device=self._policy.head.device).T
        loss = (weight_n * token_loss(logprobs_n, entropy_n, advantages_n, served_n, kl_n, self._weights)).sum()
        # Not backward(): groups are computed by several threads, and would add to the same .grad in the order in which they finish.
        gradients = torch.autograd.grad(loss, list(self._policy.parameters.values()), allow_unused=True)
        metrics = {
            "loss": loss.item(),
            "entropy": float((weight_n * entropy_n.detach()).sum()),
            "clipFraction": float(clipped(logprobs_n, advantages_n, served_n, self._weights).sum()) / tokens,
        } | served_sums(logprobs_n, served_n)
        if kl_n is not None:
            metrics["kl"] = float((weight_n * kl_n.detach()).sum())
        if self._parent is not None:
            own = bounds.distributions(hidden_nd.detach(), self._policy.head, self._items, group)
            metrics["klParent"] = bounds.weighted_kl(dict(zip(group, own, strict=True)), self._parent.at, self._items, self._policy.head)
        return metrics, gradients

    def _set_rate(self, done: float, number: int) -> float:
        # Only in the first iteration: the optimizer's state goes on from one to the next, so it is warm in the others.
        warm = min(1.0, number / (self._settings.warmup_steps + 1)) if self._iteration.step == 1 else 1.0
        rate = self._rate * warm * (1 - (1 - FINAL_RATE_SHARE) * done) * within_reach(done, fmean(self._kl_of_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def restore(self, parent: Path | None) -> None:
        # A published parent has no state (publishing.py leaves it out): each version begins with a new optimizer.
        if parent is None or not (parent / OPTIMIZER_STATE).is_file() or self._iteration.step == 1:
            return
        saved = load_file(parent / OPTIMIZER_STATE)
        for name, parameter in self._policy.parameters.items():
            if f"{name}:exp_avg" in saved:
                # The number of steps stays in the processor's memory; an earlier iteration may have been trained on another device.
                state = {key: saved[f"{name}:{key}"].to(parameter) for key in _STATE_KEYS[1:]}
                self._optimizer.state[parameter] = state | {"step": saved[f"{name}:step"]}

    def save(self, out: Path) -> None:
        of = self._optimizer.state
        states = {name: of[parameter] for name, parameter in self._policy.parameters.items() if of[parameter]}
        tensors = {f"{name}:{key}": state[key].contiguous() for name, state in states.items() for key in _STATE_KEYS}
        save_file(tensors, out / OPTIMIZER_STATE)
