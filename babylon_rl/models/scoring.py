"""Differentiable log-probabilities of recorded answers, under the distribution that served them.

Hidden states are computed once for all tokens; the head only where a token had alternatives, and only over the legal ones, in float32. A
forced token has log-probability 0 and gives no gradient. Computations over the whole vocabulary run on ``OPEN_ROWS`` tokens at
a time and again in the backward pass, so that memory does not grow with the length of free texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from babylon_rl.models.encoding import control_ids, encode_prompt, encode_text
from babylon_rl.models.grammar import compile_grammar

NOT_IN_GRAMMAR = "not_in_grammar"
EMPTY = "empty"
OPEN_ROWS = 128
_VECTOR = 16  # floats


@dataclass(frozen=True)
class EncodedSequence:
    """Tokens of a served call: prompt, T response tokens (end included), legal tokens.

    ``legal_t[t]`` is None where the whole vocabulary was; ``trainable_t[t]`` is True where the token had alternatives.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    legal_t: tuple[tuple[int, ...] | None, ...]
    trainable_t: tuple[bool, ...]

    @property
    def trainable_tokens(self) -> int:
        """Number of response tokens that had alternatives."""
        return sum(self.trainable_t)


def encode_sequence(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    response: str,
    response_format: dict[str, Any] | None,
    *,
    cut: bool = False,
    recorded: Sequence[Any] = (),
) -> EncodedSequence | str:
    """Encode a served call, or return why it cannot train: ``EMPTY`` or ``NOT_IN_GRAMMAR``.

    Without a ``response_format`` every response token is trainable.

    Args:
        cut: a limit ended the answer: no end token follows it.
        recorded: the served tokens' ids; they are taken where they are this tokenizer's for exactly this answer. A text alone does not
            say how it was divided into tokens, nor which token ended it.

    Raises:
        UsageError: the response_format is not a finite schema.
        TemplateRefused: the chat template refuses the messages.
    """
    if not response:
        return EMPTY
    prompt = encode_prompt(tokenizer, messages)
    served = _served_ids(tokenizer, response, cut, recorded)
    if response_format is None:
        # A limit may cut a character in two: what is left of it is no text of the model's.
        whole = response.rstrip("\N{REPLACEMENT CHARACTER}") if cut else response
        tokens = served or (*encode_text(tokenizer, whole), *([] if cut else [int(tokenizer.eos_token_id)]))
        if not tokens:
            return EMPTY
        return EncodedSequence(prompt, tokens, (None,) * len(tokens), (True,) * len(tokens))
    grammar = compile_grammar(response_format, tokenizer)
    answer = grammar.tokens.get(response)
    if cut:
        # The beginning of an answer, or all of it but the end token.
        answer = served if grammar.begins(served) else answer and answer[:-1]
    if not answer:
        return NOT_IN_GRAMMAR
    legal_t = tuple(grammar.legal_t(answer))
    return EncodedSequence(prompt, answer, legal_t, tuple(len(legal) > 1 for legal in legal_t))


def _served_ids(tokenizer: PreTrainedTokenizerBase, response: str, cut: bool, recorded: Sequence[Any]) -> tuple[int, ...]:
    """The recorded ids if they are exactly this answer with its end, else nothing."""
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(tokenizer) for one in recorded):
        return ()
    said = recorded if cut else recorded[:-1] if recorded and recorded[-1] in control_ids(tokenizer) else ()
    return tuple(recorded) if said and tokenizer.decode(list(said), clean_up_tokenization_spaces=False) == response else ()


def causal_model(model: nn.Module) -> Any:
    """Return the model inside a peft wrapper (adapters stay active), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def legal_logprobs(hidden_nd: Tensor, head_vd: Tensor, legal_n: Sequence[Sequence[int]]) -> Tensor:
    """Log-softmax of N hidden states over their legal tokens, [N, M] float32, padded by -inf."""
    # Legal sets differ in size: pad with a legal id, then mask the padding. To whole vectors, and not by a product of matrices, so that the
    # order of sums, and with it the last bit, is the same whatever the other sets are.
    width = -(-max(len(legal) for legal in legal_n) // _VECTOR) * _VECTOR
    ids = torch.tensor([[*legal, *[legal[0]] * (width - len(legal))] for legal in legal_n], device=hidden_nd.device)
    sizes = torch.tensor([len(legal) for legal in legal_n], device=hidden_nd.device)
    logits = (hidden_nd.float()[:, None] * head_vd[ids].float()).sum(-1)
    beyond = torch.arange(width, device=hidden_nd.device)[None] >= sizes[:, None]
    return torch.log_softmax(logits.masked_fill(beyond, float("-inf")), dim=-1)


@dataclass(frozen=True)
class Distributions:
    """Distributions at N hidden states.

    ``legal_bm``: [B, M] log-probabilities over the legal tokens at the states under a grammar, whose places are ``bound``; ``open_od``:
    [O, D] hidden states at the others, whose log-probabilities over the vocabulary would be larger.
    """

    bound: list[int]
    legal_bm: Tensor | None
    open_od: Tensor

    @classmethod
    def of(cls, hidden_nd: Tensor, head_vd: Tensor, legal_n: Sequence[tuple[int, ...] | None]) -> "Distributions":
        """Distributions at N hidden states; legal tokens None are the whole vocabulary."""
        bound = [n for n, legal in enumerate(legal_n) if legal is not None]
        legal_bm = legal_logprobs(hidden_nd[bound], head_vd, [legal for legal in legal_n if legal is not None]) if bound else None
        return cls(bound, legal_bm, hidden_nd[[n for n, legal in enumerate(legal_n) if legal is None]])

    @property
    def free(self) -> list[int]:
        """Places of the states without a grammar."""
        return sorted({*range(len(self.bound) + len(self.open_od))} - {*self.bound})

    def kl_from(self, other: "Distributions", head_vd: Tensor) -> Tensor:
        """[N] KL(these || others) in nats; exact, as estimates explode."""
        kl_n = head_vd.new_zeros(len(self.bound) + len(self.open_od), dtype=torch.float32)
        if self.legal_bm is not None and other.legal_bm is not None:
            # Where a set is padded both are -inf, and their difference would be NaN. One of the two may be padded further.
            width = min(self.legal_bm.shape[1], other.legal_bm.shape[1])
            own_bm = self.legal_bm[:, :width]
            away_bm = (own_bm - other.legal_bm[:, :width]).masked_fill(own_bm.isinf(), 0.0)
            kl_n[self.bound] = (own_bm.exp() * away_bm).sum(-1)
        if len(self.open_od):
            kl_n[self.free] = _in_parts(partial(_open_divergence, head_vd), self.open_od, other.open_od)
        return kl_n


def divergence(hidden_nd: Tensor, reference_nd: Tensor, head_vd: Tensor, legal_n: Sequence[tuple[int, ...] | None]) -> Tensor:
    """[N] KL divergences from a reference, as ``Distributions.kl_from``."""
    policy, reference = (Distributions.of(states_nd, head_vd, legal_n) for states_nd in (hidden_nd, reference_nd))
    return policy.kl_from(reference, head_vd)


def spot_values(hidden_nd: Tensor, head_vd: Tensor, spots: Sequence[tuple[tuple[int, ...] | None, int]]) -> tuple[Tensor, Tensor]:
    """[N] log-probabilities of the tokens taken and [N] entropies; whole-vocabulary spots and legal sets are computed apart."""
    found = Distributions.of(hidden_nd, head_vd, [legal for legal, _ in spots])
    values = hidden_nd.new_zeros(len(spots), dtype=torch.float32)
    entropies = torch.zeros_like(values)
    if len(found.open_od):
        picked = torch.tensor([token for legal, token in spots if legal is None], device=values.device)
        values[found.free], entropies[found.free] = _in_parts(partial(_open_values, head_vd), found.open_od, picked).T
    if found.legal_bm is not None:
        picked = torch.tensor([legal.index(token) for legal, token in spots if legal is not None], device=values.device)
        values[found.bound] = found.legal_bm.gather(-1, picked[:, None])[:, 0]
        # -inf beyond a set's size would make 0 * -inf = nan, in the gradient too.
        finite = found.legal_bm.masked_fill(torch.isinf(found.legal_bm), 0.0)
        entropies[found.bound] = -(found.legal_bm.exp() * finite).sum(-1)
    return values, entropies


def _open_values(head_vd: Tensor, hidden_nd: Tensor, picked_n: Tensor) -> Tensor:
    """[N, 2] log-probabilities of the tokens taken and entropies over the vocabulary."""
    logprobs_nv = torch.log_softmax((hidden_nd @ head_vd.T).float(), dim=-1)
    return torch.stack([logprobs_nv.gather(-1, picked_n[:, None])[:, 0], -(logprobs_nv.exp() * logprobs_nv).sum(-1)], dim=-1)


def _open_divergence(head_vd: Tensor, hidden_nd: Tensor, reference_nd: Tensor) -> Tensor:
    """[N] divergences over the vocabulary."""
    policy_nv, reference_nv = (torch.log_softmax((hidden @ head_vd.T).float(), dim=-1) for hidden in (hidden_nd, reference_nd))
    return (policy_nv.exp() * (policy_nv - reference_nv)).sum(-1)


def _in_parts(work: Callable[..., Tensor], *rows_n: Tensor) -> Tensor:
    """Apply ``work`` to ``OPEN_ROWS`` rows at a time, recomputed in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    if len(rows_n[0]) <= OPEN_ROWS:
        return work(*rows_n)
    parts = zip(*(rows.split(OPEN_ROWS) for rows in rows_n), strict=True)
    return torch.cat([checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
