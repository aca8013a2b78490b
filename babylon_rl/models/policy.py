"""Policy: a base model with any number of LoRA adapters, answering in batches.

Requests are sorted by adapter and prompt, and run in micro-batches of so many rows and prompt tokens as the device allows (device.py). What
the prompts of a micro-batch have in common is computed once, equal prompts too, and what one has in common with a kept prompt not at all.
Each request draws from its own generator, one number per free token, by inverse CDF. The same seed gives the same answer whatever else is
in the batch or was asked before: to the last bit where products of matrices sum in the same order for any number of rows, as in bf16 on the
processors that were measured (docs/decisions/0024-batches-side-by-side.md).
"""

import contextlib
import copy
import math
import random
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from babylon_rl.errors import CheckpointError, ModelUnavailable, RequestRefused, UsageError, first_line
from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.device import PROCESSOR, BatchSizes, Device, batch_sizes, best_device
from babylon_rl.models.encoding import encode_prompt, end_ids
from babylon_rl.models.generation import Generation, Row
from babylon_rl.models.grammar import compile_grammar
from babylon_rl.models.prompt_cache import PromptCache
from babylon_rl.models.row_attention import attention_by_row
from babylon_rl.models.scoring import causal_model


@dataclass(frozen=True)
class CompletionRequest:
    """One chat to continue. Without a ``response_format`` the answer is free text of at most ``max_tokens``.

    ``temperature`` 0 takes the likeliest token. ``adapter`` is a name given to ``add_adapter``; None is the base model. The text ends
    before the first of the ``stop`` strings. ``top_logprobs`` likeliest tokens are given with each token. A prompt that leaves no room for
    ``max_tokens`` gets what room there is.
    """

    messages: Sequence[dict[str, Any]]
    response_format: dict[str, Any] | None = None
    temperature: float = 1.0
    seed: int = 0
    max_tokens: int = 64
    adapter: str | None = None
    stop: Sequence[str] = ()
    top_logprobs: int = 0


@dataclass(frozen=True)
class Completion:
    """One answer; ``token_ids`` and ``logprobs`` include the end token of one that the model ended.

    Of an answer that a stop string ended they are the tokens before it. ``drawn_tokens`` counts those that the model drew.

    Log-probabilities are those of the grammar-masked distribution at temperature 1, whatever the sampling temperature: the trainer
    computes the same. A forced token has exactly 0.0.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    finish_reason: str
    drawn_tokens: int


class Policy:
    """A model, its tokenizer and its adapters (public name -> peft's name)."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        adapters: dict[str, str] | None = None,
        kept: PromptCache | None = None,
        device: Device = PROCESSOR,
    ) -> None:
        """Wrap a loaded model.

        ``model`` may be in training: a completion leaves its mode, adapter and gradients unchanged. Its weights must not change once it has
        answered in evaluation mode, as what was read of earlier prompts is ``kept``.
        """
        self.model: Any = model
        self.tokenizer = tokenizer
        self.device = device
        self._adapters = dict(adapters or {})
        self._kept = PromptCache() if kept is None else kept
        causal = causal_model(model)
        config = causal.config
        self.sizes = batch_sizes(device, causal)
        self._ends = end_ids(tokenizer, getattr(getattr(causal, "generation_config", None), "eos_token_id", None))
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._context = min(int(config.max_position_embeddings), getattr(config, "sliding_window", None) or sys.maxsize)

    @classmethod
    def load(
        cls,
        base_dir: Path,
        adapter_dir: Path | None = None,
        *,
        dtype: torch.dtype | None = None,
        adapter_name: str = "default",
        device: Device | None = None,
    ) -> "Policy":
        """Load a base model and, if given, one adapter under ``adapter_name``.

        ``device`` None chooses ``best_device()``, ``dtype`` None the device's.

        Raises:
            ModelUnavailable: the directory is no model.
            CheckpointError: the adapter cannot be loaded.
        """
        device = device or best_device()
        try:
            with quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(base_dir, trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype or device.dtype(), trust_remote_code=False)
            model = device.place(model)
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"{base_dir} cannot be loaded as a model: {first_line(error)}") from error
        policy = cls(model.eval(), tokenizer, device=device)
        if adapter_dir is not None:
            policy.add_adapter(adapter_name, adapter_dir)
        return policy

    def twin(self) -> "Policy":
        """A policy on the same weights and kept prompts for another thread, with its own active adapter."""
        # deepcopy takes what stands in its memo as copied already: modules are new, tensors are the same.
        shared: dict[int, Any] = {id(weights): weights for weights in (*self.model.parameters(), *self.model.buffers())}
        return Policy(copy.deepcopy(self.model, shared), self.tokenizer, self._adapters, self._kept, self.device)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapter names that a request may use."""
        return tuple(self._adapters)

    def add_adapter(self, name: str, directory: Path) -> None:
        """Load a further LoRA adapter. Raises CheckpointError: the directory is no adapter of this base."""
        inner = f"adapter_{len(self._adapters)}"  # peft's names become module names, which cannot hold the dots of a version
        source = str(directory)
        try:
            with quiet_loading():
                if isinstance(self.model, PeftModel):
                    self.model.load_adapter(source, adapter_name=inner, torch_device=self.device.name)
                else:
                    self.model = PeftModel.from_pretrained(self.model, source, adapter_name=inner, torch_device=self.device.name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{directory} cannot be loaded as an adapter: {first_line(error)}") from error
        self.model.eval()
        self._adapters[name] = inner

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Complete every request, in the same order. Raises UsageError: an unusable adapter, response_format, temperature or max_tokens."""
        rows = [self.row(request) for request in requests]
        self.finish(rows)
        return [self.completion(row) for row in rows]

    def finish(self, rows: Sequence[Row]) -> None:
        """Continue new rows to their ends, in micro-batches."""
        # Similar requests become neighbours, so that micro-batches share prefixes.
        order = sorted(rows, key=lambda row: (row.adapter or "", row.pending))
        for batch in _micro_batches(order, self.sizes):
            generation = self.generation(batch[0].adapter)
            with self._serving(batch[0].adapter):
                generation.admit([row for row in batch if not row.done])
                while generation.unfinished():
                    generation.step()

    def generation(self, adapter: str | None) -> Generation:
        """A batch without rows, for one adapter; see ``advance``."""
        # In training the weights change: nothing that was read before holds.
        return Generation(causal_model(self.model), adapter, PromptCache() if self.model.training else self._kept, self.device.gpu)

    def advance(self, generation: Generation, new: Sequence[Row]) -> None:
        """Admit new rows to a generation, or draw every row's next token."""
        with self._serving(generation.adapter):
            if new:
                generation.admit(new)
            else:
                generation.step()

    def row(self, request: CompletionRequest) -> Row:
        """Prepare a request, so that none fails inside a batch. Raises UsageError as ``complete``."""
        if request.adapter is not None and request.adapter not in self._adapters:
            raise UsageError(f"Unknown adapter {request.adapter!r}; loaded: {', '.join(self._adapters) or 'none'}.")
        if not 0 <= request.temperature < math.inf:
            raise RequestRefused(f"temperature is {request.temperature}: it must be 0 or more.", "temperature")
        if request.max_tokens < 1:
            raise RequestRefused(f"max_tokens is {request.max_tokens}: it must be 1 or more.", "max_tokens")
        # Megabytes are not encoded only to be refused: that takes seconds, and memory that is not given back.
        characters = sum(len(str(message.get("content", ""))) for message in request.messages)
        if characters > self._context * self._longest_token:
            raise self._too_long(f"have {characters} characters, more than that many tokens can hold")
        prompt = encode_prompt(self.tokenizer, request.messages)
        if len(prompt) >= self._context:
            raise self._too_long(f"resulted in {len(prompt)} tokens")
        try:
            node = compile_grammar(request.response_format, self.tokenizer).trie if request.response_format is not None else None
        except UsageError as refused:
            raise RequestRefused(f"response_format: {refused}", "response_format") from refused
        row = Row(
            prompt, node, request.temperature, random.Random(request.seed), min(request.max_tokens, self._context - len(prompt)),
            self._ends, request.adapter, self._stopped(request.stop), request.top_logprobs, request.stop,
        )  # fmt: skip
        # What the grammar forces at the beginning needs no model; it is read together with the prompt.
        row.follow_forced()
        return row

    def _too_long(self, messages: str) -> RequestRefused:
        return RequestRefused(
            f"This model's maximum context length is {self._context} tokens. However, your messages {messages}. "
            "Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        )

    @contextlib.contextmanager
    def _serving(self, adapter: str | None) -> Iterator[None]:
        """Activate the base or one adapter, without gradients, in evaluation mode; restore all afterwards."""
        was_training = self.model.training
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(attention_by_row(causal_model(self.model)))
            if adapter is not None:
                before, inner = self.model.active_adapter, self._adapters[adapter]
                if before != inner:
                    self.model.base_model.set_adapter(inner)
                    stack.callback(self.model.base_model.set_adapter, before)
            # Without any adapter the model is the base already.
            elif hasattr(self.model, "disable_adapter"):
                stack.enter_context(self.model.disable_adapter())
            if was_training:
                self.model.eval()
                stack.callback(self.model.train)
            yield

    def completion(self, row: Row) -> Completion:
        """The answer of a finished row."""
        tokens = row.tokens
        text = self.text(tokens)
        ended = tokens[-1:] and tokens[-1] in row.ends
        if (cut := stop_place(text, row.stop)) is not None:
            text, ended = text[:cut], True
            # Tokens before the stop string; one that holds its beginning is not the answer's.
            tokens = tokens[: self.tokens_within(tokens, cut)]
        logprobs, reason = tuple(row.logprobs[: len(tokens)]), "stop" if ended else "length"
        return Completion(text, tuple(tokens), logprobs, len(row.prompt), reason, len(row.tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """Decode an answer, or its beginning; the end token has no text."""
        shown = tokens[:-1] if tokens and tokens[-1] in self._ends else tokens
        return str(self.tokenizer.decode(list(shown), skip_special_tokens=False))

    def tokens_within(self, tokens: Sequence[int], characters: int) -> int:
        """Number of first tokens whose text has at most so many characters."""
        return bisect_right(range(1, len(tokens) + 1), characters, key=lambda number: len(self.text(tokens[:number])))

    def _stopped(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
        """Whether the last token completed one of the strings; None without any."""
        if not stop:
            return None
        # A token has a byte at least and a character at most four, so that the string lies within so many last tokens.
        most = 4 * max(map(len, stop)) + 4
        return lambda tokens: stop_place(self.text(tokens[-most:]), stop) is not None


def stop_place(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins in a text, None if it holds none."""
    return min((place for one in stop if (place := text.find(one)) >= 0), default=None)


def _micro_batches(order: Iterable[Row], sizes: BatchSizes) -> Iterator[list[Row]]:
    """Split ``order`` into batches of one adapter, within the limits on rows and tokens."""
    batch: list[Row] = []
    tokens = 0
    for row in order:
        full = len(batch) == sizes.rows or tokens + len(row.pending) > sizes.prompt_tokens
        if batch and (full or row.adapter != batch[0].adapter):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.pending)
    if batch:
        yield batch
