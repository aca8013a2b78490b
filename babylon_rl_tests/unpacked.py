"""Log-probabilities of a padded batch, sequence beside sequence: the oracle of the packed trainer, which shares prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from babylon_rl.errors import NothingToTrain
from babylon_rl.models.scoring import EncodedSequence, causal_model, spot_values


@dataclass(frozen=True)
class BranchLogprobs:
    """[B, T] tensors, 0 at padding and forced tokens; T is the longest response. Entropy is over the legal tokens, in nats."""

    logprobs: Tensor
    entropy: Tensor
    mask: Tensor


def branch_logprobs(model: nn.Module, batch: Sequence[EncodedSequence], *, pad_id: int = 0) -> BranchLogprobs:
    """Log-probability and entropy of each response token that had alternatives, as tensors with gradients.

    The forward pass ends at each sequence's last such token: what follows is forced and changes nothing.

    Raises:
        NothingToTrain: no sequence of the batch has a trainable token.
    """
    spots = [(b, t) for b, one in enumerate(batch) for t, trains in enumerate(one.trainable_t) if trains]
    if not spots:
        raise NothingToTrain("No token of these answers had an alternative: there is nothing to train.")
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    device = head.weight.device
    needed = [[*one.prompt_ids, *one.response_ids[: _last_trainable(one)]] for one in batch]
    width = max(map(len, needed))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in needed], device=device)
    lengths = torch.tensor([len(row) for row in needed], device=device)
    mask = (torch.arange(width, device=device)[None] < lengths[:, None]).long()
    hidden = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    hidden_nd = hidden[[b for b, _ in spots], [len(batch[b].prompt_ids) + t - 1 for b, t in spots]]
    value_n, entropy_n = spot_values(hidden_nd, head.weight, [(batch[b].legal_t[t], batch[b].response_ids[t]) for b, t in spots])
    shape = (len(batch), max(len(one.response_ids) for one in batch))
    index = tuple(torch.tensor(spots, device=device).T)
    zeros = torch.zeros(shape, dtype=torch.float32, device=device)
    trains = torch.zeros(shape, dtype=torch.bool, device=device).index_put(index, torch.ones(len(spots), dtype=torch.bool, device=device))
    return BranchLogprobs(zeros.index_put(index, value_n), zeros.index_put(index, entropy_n), trains)


def _last_trainable(sequence: EncodedSequence) -> int:
    return max((t for t, trains in enumerate(sequence.trainable_t) if trains), default=0)
