"""The CPU trainer: LoRA on a small real model, with the group-relative loss of loss.py, prompts of a tick shared (packing.py).

Deterministic for a seed on one machine and thread count. Trained are the upper layers alone: the lower ones' share of the
backward pass is saved, and the adapter learns the task as well. It stops before anything is published when the loss is not
finite or one action takes more than ``COLLAPSED_SHARE`` of the policy.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import CheckpointError, Diverged, NothingToTrain
from babylon_rl.models.checkpoints import BaseIdentity, base_identity
from babylon_rl.models.packaged import base_model_dir, base_model_name
from babylon_rl.models.policy import best_dtype
from babylon_rl.models.quiet import quiet_loading
from babylon_rl.models.scoring import divergence, legal_logprobs, spot_values
from babylon_rl.models.threads import set_threads
from babylon_rl.settings import Settings
from babylon_rl.training.cpu_items import Item, make_items
from babylon_rl.training.loss import LossWeights, token_loss
from babylon_rl.training.packing import Pack, needed_ids, pack, row_tensors
from babylon_rl.training.trainer import IterationResult, StepMetrics, TrainIteration

if TYPE_CHECKING:
    from torch import Tensor

LEARNING_RATE = 3e-3
RANK, ALPHA = 16, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
FROZEN_SHARE = 0.4  # of the layers, from the bottom
ENTROPY_BONUS = 0.05
FINAL_RATE_SHARE = 0.1
PACKS_A_STEP, SEQUENCES_A_STEP = 6, 24  # an optimizer step takes at least so many of both
COLLAPSED_SHARE = 0.95
COLLAPSE_CHECKED_PACKS = 24
OPTIMIZER_STATE = "trainer_state.safetensors"


class CpuTrainer:
    """Trains on this machine's processor; see the module. ``threads`` None takes the cores there are."""

    name = "cpu"

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        self.base_model = settings.local_base_model or base_model_name(settings)
        self._settings = settings
        self._base_dir = base_model_dir(settings)
        self._threads = threads

    def base_identity(self) -> BaseIdentity:
        """The identity of the base that is trained on."""
        return base_identity(self._base_dir, self.base_model)

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: Callable[[StepMetrics], None]) -> IterationResult:
        """As Trainer.train.

        Raises:
            Diverged: the loss is not finite, or the policy collapsed into one action.
            NothingToTrain: no sequence has a token with alternatives.
            CheckpointError: the parent does not fit the base.
        """
        set_threads(self._threads)
        import torch

        torch.manual_seed(iteration.seed)
        tokenizer, model = self._load(parent)
        items, left_out = make_items(tokenizer, iteration.sequences)
        if not items:
            raise NothingToTrain(f"No sequence of iteration {iteration.step} can be trained: {dict(left_out)}.")
        run = _Run(model, items, iteration, self._settings)
        run.restore(parent)
        result = run.train(on_step)
        with quiet_loading():
            model.save_pretrained(str(out))
        (out / "README.md").unlink(missing_ok=True)  # the model card is written on publication
        run.save(out)
        metrics = result.metrics | {f"leftOut_{reason}": float(count) for reason, count in left_out.items()}
        return IterationResult(metrics, result.trainable_tokens, result.loss, len(items))

    def _load(self, parent: Path | None) -> tuple[Any, Any]:
        from peft import LoraConfig, PeftModel, get_peft_model
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(self._base_dir)
            base = AutoModelForCausalLM.from_pretrained(self._base_dir, dtype=best_dtype(), attn_implementation="sdpa")
            if parent is not None:
                try:
                    return tokenizer, PeftModel.from_pretrained(base, str(parent), is_trainable=True, autocast_adapter_dtype=False)
                except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
                    raise CheckpointError(f"{parent} cannot be continued from: {str(error).splitlines()[0]}") from error
            layers = base.config.num_hidden_layers
            config = LoraConfig(
                r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), layers_to_transform=list(range(int(layers * FROZEN_SHARE), layers))
            )
            return tokenizer, get_peft_model(base, config, autocast_adapter_dtype=False)


def _steps(packs: Sequence[Pack]) -> Iterator[list[Pack]]:
    step: list[Pack] = []
    for one in packs:
        step.append(one)
        if len(step) >= PACKS_A_STEP and sum(len(member.members) for member in step) >= SEQUENCES_A_STEP:
            yield step
            step = []
    if step:
        yield step


class _Run:
    """The optimizer steps of one iteration."""

    def __init__(self, model: Any, items: Sequence[Item], iteration: TrainIteration, settings: Settings) -> None:
        import torch

        self._model, self._items, self._iteration, self._settings = model, items, iteration, settings
        self._causal = model.get_base_model()
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._rate = settings.learning_rate or LEARNING_RATE
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=self._rate, weight_decay=0.0)
        self._weights = LossWeights(ENTROPY_BONUS, settings.kl_penalty)

    def train(self, on_step: Callable[[StepMetrics], None]) -> IterationResult:
        import torch

        packs = pack([item.encoded for item in self._items])
        plan = list(self._plan(packs))
        totals, tokens = Counter[str](), 0
        self._model.train()
        for number, chosen in enumerate(plan, start=1):
            self._set_rate((self._iteration.step - 1 + (number - 1) / len(plan)) / self._iteration.steps, number)
            step = self._step(chosen)
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm))
            self._check(step["loss"], norm, number)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            tokens += int(step.pop("tokens"))
            step["gradientNorm"] = norm
            totals.update(step)
            on_step(
                StepMetrics(self._iteration.step, number, len(plan), step["loss"], tokens, {k: v for k, v in step.items() if k != "loss"})
            )
        shares = self.action_shares(packs)
        if shares and max(shares.values()) > COLLAPSED_SHARE:
            raise Diverged(
                f"After iteration {self._iteration.step} one action has {max(shares.values()):.0%} of the policy "
                f"(bound {COLLAPSED_SHARE:.0%}): it collapsed, and nothing was published. Lower LEARNING_RATE, or train on more windows."
            )
        means = {name: total / len(plan) for name, total in totals.items()}
        loss = means.pop("loss")
        means |= {
            "optimizerSteps": float(len(plan)),
            "topActionShare": max(shares.values(), default=0.0),
            "prefixSharing": sum(len(needed_ids(i.encoded)) for i in self._items) / sum(p.tokens for p in packs),
        }
        return IterationResult(means, tokens, loss)

    def _plan(self, packs: Sequence[Pack]) -> Iterator[list[Pack]]:
        rng = random.Random(self._iteration.seed)
        for _ in range(self._settings.epochs):
            order = list(packs)
            rng.shuffle(order)
            yield from _steps(order)

    def _set_rate(self, done: float, number: int) -> None:
        warm = min(1.0, number / (self._settings.warmup_steps + 1)) if self._iteration.step == 1 else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * warm * (1 - (1 - FINAL_RATE_SHARE) * done)

    def _step(self, packs: Sequence[Pack]) -> dict[str, float]:
        """Gradients of one optimizer step, and its loss, KL and entropy as means over the sequences' tokens."""
        tokens = sum(self._items[member].encoded.trainable_tokens for one in packs for member in one.members)
        found = Counter[str]()
        for one in packs:
            found.update(self._pack_gradient(one, tokens))
        return {**found, "tokens": float(tokens)}

    def _pack_gradient(self, one: Pack, tokens: int) -> dict[str, float]:
        import torch

        spots = [(m, n, t) for m, n in enumerate(one.members) for t, trains in enumerate(self._items[n].encoded.trainable_t) if trains]
        head = self._causal.get_output_embeddings().weight
        legal_n = [self._items[n].encoded.legal_t[t] for _, n, t in spots]
        hidden_nd = self._hidden(one, spots)
        logprobs_n, entropy_n = spot_values(
            hidden_nd, head, [(legal, self._items[n].encoded.response_ids[t]) for legal, (_, n, t) in zip(legal_n, spots, strict=True)]
        )
        kl_n = None
        if self._weights.kl:
            with torch.no_grad(), self._model.disable_adapter():
                reference_nd = self._hidden(one, spots)
            kl_n = divergence(hidden_nd, reference_nd, head, legal_n)
        weight_n = torch.tensor([self._items[n].token_weight for _, n, _ in spots]) / tokens
        advantages_n = torch.tensor([self._items[n].advantage for _, n, _ in spots])
        served_n = torch.tensor([self._items[n].served_t[t] for _, n, t in spots])
        loss = (weight_n * token_loss(logprobs_n, entropy_n, advantages_n, served_n, kl_n, self._weights)).sum()
        loss.backward()
        found = {"loss": loss.item(), "entropy": float((weight_n * entropy_n.detach()).sum())}
        return found if kl_n is None else found | {"kl": float((weight_n * kl_n.detach()).sum())}

    def _hidden(self, one: Pack, spots: Sequence[tuple[int, int, int]]) -> "Tensor":
        ids, positions, mask = row_tensors(one, self._causal.dtype)
        hidden = self._causal.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state[0]
        return hidden[[one.position(m, len(self._items[n].encoded.prompt_ids) + t - 1) for m, n, t in spots]]

    def action_shares(self, packs: Sequence[Pack]) -> dict[int, float]:
        """The policy's mean probability of each token at the first choice of an answer, over some packs; empty without grammars."""
        import torch

        shares: Counter[int] = Counter()
        asked = 0
        self._model.eval()
        with torch.no_grad():
            for one in packs[:: max(1, len(packs) // COLLAPSE_CHECKED_PACKS)]:
                chosen = [(m, n, self._items[n].encoded.trainable_t.index(True)) for m, n in enumerate(one.members)]
                firsts = [(m, n, t) for m, n, t in chosen if self._items[n].encoded.legal_t[t] is not None]
                if firsts:
                    legal = [self._items[n].encoded.legal_t[t] or () for _, n, t in firsts]
                    logprobs = legal_logprobs(self._hidden(one, firsts), self._causal.get_output_embeddings().weight, legal)
                    for tokens, row in zip(legal, logprobs.exp().tolist(), strict=True):
                        shares.update(dict(zip(tokens, row, strict=False)))
                    asked += len(firsts)
        self._model.train()
        return {token: total / asked for token, total in shares.items()}

    def _check(self, loss: float, norm: float, number: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"Step {number} of iteration {self._iteration.step} has loss {loss} and gradient norm {norm}; "
                "nothing was published. Lower LEARNING_RATE."
            )

    def restore(self, parent: Path | None) -> None:
        """Take up the optimizer state that the iteration before left."""
        if parent is None or not (parent / OPTIMIZER_STATE).is_file() or self._iteration.step == 1:
            return
        from safetensors.torch import load_file

        held = load_file(parent / OPTIMIZER_STATE)
        for name, parameter in self._parameters.items():
            if f"{name}:exp_avg" in held:
                self._optimizer.state[parameter] = {key: held[f"{name}:{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}

    def save(self, out: Path) -> None:
        """Leave the optimizer state for the next iteration."""
        from safetensors.torch import save_file

        states = {
            name: self._optimizer.state[parameter] for name, parameter in self._parameters.items() if self._optimizer.state[parameter]
        }
        save_file(
            {f"{name}:{key}": state[key].contiguous() for name, state in states.items() for key in ("step", "exp_avg", "exp_avg_sq")},
            out / OPTIMIZER_STATE,
        )
