"""The policy that the CPU trainer trains: a base with LoRA in its upper layers, run over packed rows.

The lower layers stay as they are: their share of the backward pass is saved, and the adapter learns the task as well. What was legal
at each choice is all that the head computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import CheckpointError
from babylon_rl.models.policy import best_dtype
from babylon_rl.models.quiet import quiet_loading
from babylon_rl.models.scoring import divergence, spot_values
from babylon_rl.training.cpu_items import Item
from babylon_rl.training.packing import Pack, row_tensors

if TYPE_CHECKING:
    from torch import Tensor

RANK, ALPHA = 16, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
FROZEN_SHARE = 0.4  # of the layers, from the bottom
# In rows this short plain matrix products beat the processor's fused attention, whose backward pass is slow (benchmarks/cpu_trainer.py).
SHORT_ROW = 768

Spot = tuple[int, int, int]  # member of the pack, item, response token


class PackedPolicy:
    """A causal model with an adapter in training, asked about tokens of packed rows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._causal = model.get_base_model()
        self.head: Tensor = self._causal.get_output_embeddings().weight
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}

    def hidden(self, one: Pack, items: Sequence[Item], spots: Sequence[Spot]) -> "Tensor":
        """[N, D] the hidden states that choose the tokens at N spots of a pack."""
        ids, positions, mask = row_tensors(one, self._causal.dtype)
        self._causal.set_attn_implementation("eager" if one.tokens <= SHORT_ROW else "sdpa")
        hidden = self._causal.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state[0]
        return hidden[[one.position(m, len(items[n].encoded.prompt_ids) + t - 1) for m, n, t in spots]]

    def reference(self, one: Pack, items: Sequence[Item], spots: Sequence[Spot]) -> "Tensor":
        """[N, D] the same without the adapter and without gradients."""
        import torch

        with torch.no_grad(), self.model.disable_adapter():
            return self.hidden(one, items, spots)

    def values(self, hidden_nd: "Tensor", items: Sequence[Item], spots: Sequence[Spot]) -> "tuple[Tensor, Tensor]":
        """[N] log-probabilities of the tokens taken and [N] entropies over what was legal."""
        return spot_values(hidden_nd, self.head, [(items[n].encoded.legal_t[t], items[n].encoded.response_ids[t]) for _, n, t in spots])

    def divergence(self, hidden_nd: "Tensor", reference_nd: "Tensor", items: Sequence[Item], spots: Sequence[Spot]) -> "Tensor":
        """[N] KL divergences, in nats, of the policy from the base at each spot."""
        return divergence(hidden_nd, reference_nd, self.head, [items[n].encoded.legal_t[t] for _, n, t in spots])


def choices(one: Pack, items: Sequence[Item]) -> list[Spot]:
    """The spots of a pack's tokens that had alternatives."""
    return [(m, n, t) for m, n in enumerate(one.members) for t, trains in enumerate(items[n].encoded.trainable_t) if trains]


def load_policy(base_dir: Path, parent: Path | None) -> tuple[Any, Any]:
    """The tokenizer, and the base with the parent's adapter, or a new one that changes nothing yet.

    Raises:
        CheckpointError: the parent is damaged, or does not fit the base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(base_dir)
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=best_dtype(), attn_implementation="sdpa")
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
