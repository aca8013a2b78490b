"""Differentiable log-probabilities of recorded answers, under the distribution that served them.

Hidden states are computed once for all tokens; the head only where a token had alternatives, and only over the legal ones, in float32. A
forced token has log-probability 0 and gives no gradient. Computations over the whole vocabulary run on ``OPEN_ROWS`` tokens at
a time and again in the backward pass, so that memory does not grow with the length of free texts.

Tokens are cached by line: agents of a tick see the same markets and news. A tokenizer whose words end at every line (byte-level BPE with
GPT-2's pattern, as in the packaged base) gives a text the tokens of its lines in sequence. Other tokenizers get the whole text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from babylon_rl.models.grammar import compile_grammar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

NOT_IN_GRAMMAR = "not_in_grammar"
EMPTY = "empty"
OPEN_ROWS = 128
_VECTOR = 16  # floats
KEPT_LINES = 4096
LONGEST_KEPT = 256  # characters: what is kept stays within some MB whatever agents write
# A run of whitespace is one word with its line break, so a text is cut only where the break stands alone.
_CUT = re.compile(r"(?<=\S\n)(?=\S)")


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encode a text, without special tokens around it."""
    if not _ends_words_at_lines(tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False))
    tokens: list[int] = []
    for line in _CUT.split(text):
        tokens += _line_tokens(tokenizer, line) if len(line) <= LONGEST_KEPT else tokenizer.encode(line, add_special_tokens=False)
    return tokens


@lru_cache(maxsize=KEPT_LINES)
def _line_tokens(tokenizer: "PreTrainedTokenizerBase", line: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(line, add_special_tokens=False))


@lru_cache(maxsize=8)
def _ends_words_at_lines(tokenizer: "PreTrainedTokenizerBase") -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = getattr(backend, "pre_tokenizer", None)
    if backend is None or backend.normalizer is not None or not isinstance(words, ByteLevel):
        return False
    # An added token that holds a line break, or takes the blanks before it, may join two lines.
    cut_in_words = any(token.lstrip or "\n" in token.content for token in tokenizer.added_tokens_decoder.values())
    return words.use_regex and not words.add_prefix_space and not cut_in_words


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


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Encode a prompt: the chat template with the opening of the assistant's turn."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return tuple(encode_text(tokenizer, str(text)))


def encode_sequence(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, Any]], response: str, response_format: dict[str, Any] | None
) -> EncodedSequence | str:
    """Encode a served call, or return why it cannot train: ``EMPTY`` or ``NOT_IN_GRAMMAR``.

    Without a ``response_format`` every response token is trainable.

    Raises:
        UsageError: the response_format is not a finite schema.
    """
    if not response:
        return EMPTY
    prompt = encode_prompt(tokenizer, messages)
    if response_format is None:
        tokens = (*tokenizer.encode(response, add_special_tokens=False), int(tokenizer.eos_token_id))
        return EncodedSequence(prompt, tokens, (None,) * len(tokens), (True,) * len(tokens))
    grammar = compile_grammar(response_format, tokenizer)
    answer = grammar.tokens.get(response)
    if answer is None:
        return NOT_IN_GRAMMAR
    legal_t = tuple(grammar.legal_t(answer))
    return EncodedSequence(prompt, answer, legal_t, tuple(len(legal) > 1 for legal in legal_t))


def causal_model(model: "nn.Module") -> Any:
    """Return the model inside a peft wrapper (adapters stay active), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def legal_logprobs(hidden_nd: "Tensor", head_vd: "Tensor", legal_n: Sequence[Sequence[int]]) -> "Tensor":
    """Log-softmax of N hidden states over their legal tokens, [N, M] float32, padded by -inf."""
    import torch

    # Legal sets differ in size: pad with a legal id, then mask the padding. To whole vectors, and not by a product of matrices, so that the
    # order of sums, and with it the last bit, is the same whatever the other sets are.
    width = -(-max(len(legal) for legal in legal_n) // _VECTOR) * _VECTOR
    ids = torch.tensor([[*legal, *[legal[0]] * (width - len(legal))] for legal in legal_n], device=hidden_nd.device)
    sizes = torch.tensor([len(legal) for legal in legal_n], device=hidden_nd.device)
    logits = (hidden_nd.float()[:, None] * head_vd[ids].float()).sum(-1)
    beyond = torch.arange(width, device=hidden_nd.device)[None] >= sizes[:, None]
    return torch.log_softmax(logits.masked_fill(beyond, float("-inf")), dim=-1)


def spot_values(hidden_nd: "Tensor", head_vd: "Tensor", spots: Sequence[tuple[tuple[int, ...] | None, int]]) -> "tuple[Tensor, Tensor]":
    """[N] log-probabilities of the tokens taken and [N] entropies.

    Whole-vocabulary spots and legal sets are computed separately.
    """
    import torch

    values = hidden_nd.new_zeros(len(spots), dtype=torch.float32)
    entropies = torch.zeros_like(values)
    open_n = [n for n, (legal, _) in enumerate(spots) if legal is None]
    bound = [(n, legal, token) for n, (legal, token) in enumerate(spots) if legal is not None]
    if open_n:
        picked = torch.tensor([spots[n][1] for n in open_n], device=values.device)
        where = torch.tensor(open_n, device=values.device)
        value_n, entropy_n = _in_parts(partial(_open_values, head_vd), hidden_nd[open_n], picked).T
        values, entropies = values.index_put((where,), value_n), entropies.index_put((where,), entropy_n)
    if bound:
        logprobs = legal_logprobs(hidden_nd[[n for n, _, _ in bound]], head_vd, [legal for _, legal, _ in bound])
        picked = torch.tensor([legal.index(token) for _, legal, token in bound], device=values.device)
        where = torch.tensor([n for n, _, _ in bound], device=values.device)
        values = values.index_put((where,), logprobs.gather(-1, picked[:, None])[:, 0])
        # -inf beyond a set's size would make 0 * -inf = nan, in the gradient too.
        finite = logprobs.masked_fill(torch.isinf(logprobs), 0.0)
        entropies = entropies.index_put((where,), -(logprobs.exp() * finite).sum(-1))
    return values, entropies


def divergence(hidden_nd: "Tensor", reference_nd: "Tensor", head_vd: "Tensor", legal_n: Sequence[tuple[int, ...] | None]) -> "Tensor":
    """[N] exact KL divergences from a reference over the legal tokens, in nats.

    Legal tokens None are the whole vocabulary.

    Exact, because an estimate from the taken token alone explodes when the token was taken by somebody else.
    """
    import torch

    kl = hidden_nd.new_zeros(len(legal_n), dtype=torch.float32)
    open_n = [n for n, legal in enumerate(legal_n) if legal is None]
    bound_n = [n for n, legal in enumerate(legal_n) if legal is not None]
    if open_n:
        open_kl = _in_parts(partial(_open_divergence, head_vd), hidden_nd[open_n], reference_nd[open_n])
        kl = kl.index_put((torch.tensor(open_n, device=kl.device),), open_kl)
    if bound_n:
        legal = [legal_n[n] or () for n in bound_n]
        policy, reference = (legal_logprobs(hidden[bound_n], head_vd, legal) for hidden in (hidden_nd, reference_nd))
        # Where a set is padded both are -inf, and their difference would be NaN.
        away = (policy - reference).masked_fill(torch.isinf(policy), 0.0)
        kl = kl.index_put((torch.tensor(bound_n, device=kl.device),), (policy.exp() * away).sum(-1))
    return kl


def _open_values(head_vd: "Tensor", hidden_nd: "Tensor", picked_n: "Tensor") -> "Tensor":
    """[N, 2] log-probabilities of the tokens taken and entropies over the vocabulary."""
    import torch

    logprobs_nv = torch.log_softmax((hidden_nd @ head_vd.T).float(), dim=-1)
    return torch.stack([logprobs_nv.gather(-1, picked_n[:, None])[:, 0], -(logprobs_nv.exp() * logprobs_nv).sum(-1)], dim=-1)


def _open_divergence(head_vd: "Tensor", hidden_nd: "Tensor", reference_nd: "Tensor") -> "Tensor":
    """[N] divergences over the vocabulary."""
    import torch

    policy_nv, reference_nv = (torch.log_softmax((hidden @ head_vd.T).float(), dim=-1) for hidden in (hidden_nd, reference_nd))
    return (policy_nv.exp() * (policy_nv - reference_nv)).sum(-1)


def _in_parts(work: "Callable[..., Tensor]", *rows_n: "Tensor") -> "Tensor":
    """Apply ``work`` to ``OPEN_ROWS`` rows at a time, recomputed in the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    if len(rows_n[0]) <= OPEN_ROWS:
        return work(*rows_n)
    parts = zip(*(rows.split(OPEN_ROWS) for rows in rows_n), strict=True)
    return torch.cat([checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
