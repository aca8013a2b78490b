"""Policy of this package's trainer, a base with upper-layer LoRA, over packed rows of encoded calls.

Calls that cannot train are counted by reason. Pre-flight counts the same, one call after another, and keeps none, so that a batch may hold
more calls than memory.

The lower layers stay frozen: their share of the backward pass is saved, and the adapter learns the task as well. The head is computed only
over the legal tokens of each choice.

Agents of one tick see the same markets and news, so their prompts differ only at the end. A pack is one row that holds their sequences as a
tree: what some begin with stands there once. A token attends to those before it in its own sequences alone, and keeps its position in
them. The log-probabilities equal those of separate rows.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from babylon_rl.chats import is_cut, log_probability
from babylon_rl.errors import CheckpointError, RequestRefused, UsageError, first_line
from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.checkpoints import read_remote
from babylon_rl.models.device import PROCESSOR, BatchSizes, Device, batch_sizes, best_device
from babylon_rl.models.row_attention import (
    KnownStates,
    LowerStates,
    Unread,
    attention_by_row,
    read_rows,
    record_lower,
    shared_length,
    shared_trunk,
)
from babylon_rl.models.scoring import EMPTY, NOT_IN_GRAMMAR, EncodedSequence, divergence, encode_sequence, spot_values
from babylon_rl.training.backends.protocol import TrainPlan, TrainSequence

LONGEST_SEQUENCE = 1536  # tokens, prompt and answer: peak memory is measured up to this length (docs/evidence/performance.md)
TOO_LONG, NO_CHOICE, OPEN_SCHEMA, TEMPLATE = "too_long", "no_choice", "open_schema", "template"
IN_WORDS = {
    EMPTY: "with an empty answer",
    NOT_IN_GRAMMAR: "whose answer is not one that their schema allows",
    NO_CHOICE: "whose schema allows one answer alone",
    OPEN_SCHEMA: "under a schema that is not finite",
    TEMPLATE: "whose messages the chat template of the base does not take",
    TOO_LONG: f"longer than {LONGEST_SEQUENCE:,} tokens, prompt and answer",
}
SHORTEST_PREFIX = 32
RANK, ALPHA = 16, 32
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
FROZEN_SHARE = 0.4  # of the layers, from the bottom
TOKENS_AT_ONCE = 1728  # of groups that are computed side by side: together they need no more memory than the longest row alone
KNOWN_BYTES = 2**27  # of states below the trained layers: of the packaged base 116,000 tokens, in float32 half as many

LAYER = re.compile(r"\.layers\.(\d+)\.")  # in the names of parameters

Group = Sequence["Pack"]  # computed in one pass
Spot = tuple[int, int, int]  # member of the pack, item, response token
Computed = TypeVar("Computed")


@dataclass(frozen=True)
class Item:
    """One encoded sequence with its advantage; ``token_weight`` makes episodes weigh the same.

    ``group`` and ``score`` are of an answer that was replayed; answers.py gives it advantage and weight.
    """

    encoded: EncodedSequence
    advantage: float
    token_weight: float
    served_t: tuple[float, ...]
    group: str = ""
    score: float = 0.0


def make_items(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[TrainSequence]) -> tuple[list[Item], Counter[str]]:
    """Encode the sequences of an iteration; count the ones left out by reason.

    An episode (window, agent) weighs the same whatever its length: its loss is the mean over its trainable tokens. Answers of groups have
    the weight of an episode until answers.py divides it among a group.
    """
    left_out = Counter[str]()
    encodable = list(encode(tokenizer, sequences, left_out))
    tokens = Counter[tuple[str, str]]()
    for sequence, encoded in encodable:
        if not sequence.group:
            tokens[sequence.window, sequence.agent_id] += encoded.trainable_tokens
    # the mean over tokens and episodes of token weights is 1, so that the learning rate means the same for any batch
    scale = sum(tokens.values()) / len(tokens) if tokens else 1.0
    items = [
        Item(
            encoded, sequence.advantage, scale if sequence.group else scale / tokens[sequence.window, sequence.agent_id],
            served_logprobs(sequence, encoded), sequence.group, sequence.score or 0.0,
        )
        for sequence, encoded in encodable
    ]  # fmt: skip
    return items, left_out


def plan_items(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[TrainSequence]) -> TrainPlan:
    """Plan the result of ``make_items`` per hour, with the tokenizer alone."""
    tokens, left_out, trajectories = Counter[str](), Counter[str](), set[str]()
    for sequence, encoded in encode(tokenizer, sequences, left_out):
        tokens[sequence.window] += encoded.trainable_tokens
        trajectories.add(sequence.trajectory_id)
    untrained = {IN_WORDS[reason]: number for reason, number in left_out.items()}
    reasons = ", ".join(f"{number} {reason}" for reason, number in untrained.items()) or "no sequence"
    cure = (
        f"The CPU trainer finds sequences that it cannot train: {reasons}. Record prompts that fit, and answers without a response_format "
        "or under one whose answers are finitely many, as they were written."
    )
    return TrainPlan(tokens, len(sequences) - sum(left_out.values()), untrained, cure, trajectories=frozenset(trajectories))


def encode(
    tokenizer: PreTrainedTokenizerBase, sequences: Iterable[TrainSequence], left_out: Counter[str]
) -> Iterator[tuple[TrainSequence, EncodedSequence]]:
    """Yield the sequences that can train, and count the others by reason.

    An answer group is left out whole: a target over a part of its answers would push the others down.
    """
    for name, members in groupby(sequences, attrgetter("group")):
        for own in [list(members)] if name else ([one] for one in members):
            found = [trainable(tokenizer, one) for one in own]
            encoded = [one for one in found if not isinstance(one, str)]
            if len(encoded) == len(own):
                yield from zip(own, encoded, strict=True)
            else:
                left_out[next(one for one in found if isinstance(one, str))] += len(own)


def trainable(tokenizer: PreTrainedTokenizerBase, sequence: TrainSequence) -> EncodedSequence | str:
    """Encode a sequence, or return the reason (of ``IN_WORDS``) why it cannot train."""
    try:
        encoded = encode_sequence(
            tokenizer, sequence.messages, sequence.response, sequence.response_format,
            cut=is_cut(sequence.finish_reason), recorded=[entry.get("tokenId") for entry in sequence.logprobs or ()],
        )  # fmt: skip
    except RequestRefused:
        return TEMPLATE
    except UsageError:  # recorded elsewhere under a schema whose language is not finite
        return OPEN_SCHEMA
    if isinstance(encoded, str):
        return encoded
    if not encoded.trainable_tokens:
        return NO_CHOICE
    return TOO_LONG if len(encoded.prompt_ids) + len(encoded.response_ids) > LONGEST_SEQUENCE else encoded


def served_logprobs(sequence: TrainSequence, encoded: EncodedSequence) -> tuple[float, ...]:
    """Recorded log-probabilities by response token; NaN unless all are numbers with the base's ids."""
    recorded = sequence.logprobs or ()
    values = [log_probability(entry.get("logprob")) for entry in recorded]
    if None in values or [entry.get("tokenId") for entry in recorded] != list(encoded.response_ids):
        return (math.nan,) * len(encoded.response_ids)
    return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class Pack:
    """Packed row: the sequences as a tree of tokens.

    ``members``: index of each sequence in the batch; ``paths``: the places in the row of each one's tokens.
    """

    members: tuple[int, ...]
    unread: Unread
    paths: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return len(self.unread.tokens)


def tokens_of(group: Group) -> int:
    """Number of tokens in a pass over some packs: what all begin with is computed once."""
    return sum(row.tokens for row in group) - (len(group) - 1) * shared_trunk([row.unread for row in group])


def grouped(packs: Sequence[Pack], most_tokens: int = BatchSizes.training_tokens) -> list[list[Pack]]:
    """Divide packs, in order, into groups of at most ``most_tokens``, but of one pack at least.

    A pack that shares less with a group than its packs do among themselves, so that more would be computed, begins the next one.
    """
    groups: list[list[Pack]] = []
    for row in packs:
        if groups and tokens_of([*groups[-1], row]) <= min(most_tokens, tokens_of(groups[-1]) + row.tokens):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def needed_ids(sequence: EncodedSequence) -> tuple[int, ...]:
    """Tokens that must be computed: all before the last token that had alternatives."""
    # A token's log-probability comes from the state before it, so the last one itself is not needed, nor what follows it.
    last = max((t for t, trains in enumerate(sequence.trainable_t) if trains), default=0)
    return (*sequence.prompt_ids, *sequence.response_ids[:last])


def pack(sequences: Sequence[EncodedSequence], *, most_tokens: int = 2048) -> list[Pack]:
    """Pack sequences with a common prefix into rows of at most ``most_tokens``.

    A row's sequences have at least ``SHORTEST_PREFIX`` tokens in common. The result does not depend on the order of the sequences beyond
    the indexes it names.
    """
    # Sorted by tokens: sequences with a long common prefix become neighbours, whatever the order in which they came.
    ordered = sorted((needed_ids(sequence), index) for index, sequence in enumerate(sequences))
    return [as_pack(run) for run in _runs(ordered, most_tokens)]


def _runs(ordered: Sequence[tuple[tuple[int, ...], int]], most_tokens: int) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    run: list[tuple[tuple[int, ...], int]] = []
    size = 0
    for ids, index in ordered:
        # Sorted: what the first and the last share all share, and a sequence shares most with the one before it.
        new = len(ids) - shared_length(run[-1][0] if run else (), ids)
        # less than half in common (another tick, or only a system prompt): the row's wider attention would cost more than it saves
        if run and (shared_length(run[0][0], ids) < max(SHORTEST_PREFIX, len(ids) // 2) or size + new > most_tokens):
            yield run
            run, size, new = [], 0, len(ids)
        run.append((ids, index))
        size += new
    if run:
        yield run


def as_pack(run: Sequence[tuple[tuple[int, ...], int]]) -> Pack:
    """Pack sorted sequences, each with its index in the batch, into one row."""
    tokens, before, paths = list[int](), list[int](), list[tuple[int, ...]]()
    ids_before: tuple[int, ...] = ()
    path: tuple[int, ...] = ()
    for ids, _ in run:
        shared = shared_length(ids_before, ids)
        path = (*path[:shared], *range(len(tokens), len(tokens) + len(ids) - shared))
        before += [path[place - 1] if place else -1 for place in range(shared, len(ids))]
        tokens += ids[shared:]
        ids_before = ids
        paths.append(path)
    return Pack(tuple(index for _, index in run), Unread(tuple(tokens), tuple(before)), tuple(paths))


class PackedPolicy:
    """Causal model with an adapter in training, evaluated at tokens of packed rows.

    Groups of rows are computed side by side on up to ``threads`` threads, each by one thread (torch.set_num_threads(1)). Threads that share
    a row would round differently depending on their number, and would wait for each other on a busy machine. A GPU computes one larger
    group after another. The layers that do not train compute a token once, while there is room in ``KNOWN_BYTES``.
    """

    def __init__(self, model: Any, threads: int = 1, device: Device = PROCESSOR) -> None:
        self.model = model
        self.device = device
        self._threads = threads
        # Kept: a new thread may get another of glibc's heaps, beside the memory that the one before it has freed.
        self._computing = cache(ThreadPoolExecutor)
        self._causal = model.get_base_model()
        self._group_tokens = batch_sizes(device, self._causal).training_tokens
        self.head: Tensor = self._causal.get_output_embeddings().weight
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        layers = {name: LAYER.search(name) for name in self.parameters}
        if beside := [name for name, found in layers.items() if found is None]:
            raise CheckpointError(
                f"The adapter trains {beside[0]} too, and this trainer layers alone: begin from another version, or the base."
            )
        first_trained = min(int(found[1]) for found in layers.values() if found)
        record_lower(self._causal, first_trained)
        self._known = KnownStates(first_trained, KNOWN_BYTES)
        self._group = threading.local()  # of the group that a thread computes: its lower states

    def grouped(self, packs: Sequence[Pack]) -> list[list[Pack]]:
        """Divide packs into groups for ``each``: on processors at least two, so that two cores have work."""
        groups = grouped(packs, self._group_tokens)
        if len(groups) == 1 and len(packs) > 1 and not self.device.gpu:
            half = len(packs) // 2
            return [list(packs[:half]), list(packs[half:])]
        return groups

    def each(self, groups: Sequence[Group], compute: Callable[[Group], Computed]) -> list[Computed]:
        """Apply ``compute`` to every group of packs and return the results in order.

        The results do not depend on the number of threads; ``compute`` may call ``hidden``.
        """
        # Parallel groups together stay within the memory of the longest single row.
        at_once = max(1, min(self._threads, TOKENS_AT_ONCE // max(map(tokens_of, groups), default=1)))

        def known(group: Group) -> tuple[Computed, LowerStates]:
            self._group.lower = self._known.find([row.unread for row in group])
            return compute(group), self._group.lower

        results = list[Computed]()
        with attention_by_row(self._causal):
            for result, lower in map(known, groups) if self.device.gpu else self._computing(at_once).map(known, groups):
                results.append(result)
                self._known.add(lower)
        self._known.show()
        return results

    def hidden(self, group: Group, items: Sequence[Item]) -> Tensor:
        """[N, D] hidden states before the tokens at N choices, pack after pack; called within ``each``."""
        wanted = [before_choices(row, items) for row in group]
        return torch.cat(read_rows(self._causal, [row.unread for row in group], lower=self._group.lower, wanted=wanted))

    def states(self, packs: Sequence[Pack], items: Sequence[Item]) -> list[Tensor]:
        """[N, D] hidden states of each pack at its choices, without gradients."""

        def compute(group: Group) -> tuple[Tensor, ...]:
            with torch.no_grad():  # holds for a thread alone
                return by_pack(self.hidden(group, items), group, items)

        # Each alone on a processor: in float32 its last bits would depend on the packs beside it.
        groups = self.grouped(packs) if self.device.gpu else [[row] for row in packs]
        return [found for group in self.each(groups, compute) for found in group]

    def base_states(self, packs: Sequence[Pack], items: Sequence[Item]) -> list[Tensor]:
        """The base's ``states``."""
        with self.model.disable_adapter():
            return self.states(packs, items)

    def values(self, hidden_nd: Tensor, items: Sequence[Item], spots: Sequence[Spot]) -> tuple[Tensor, Tensor]:
        """[N] log-probabilities of the tokens taken and [N] entropies over the legal tokens."""
        return spot_values(hidden_nd, self.head, [(items[n].encoded.legal_t[t], items[n].encoded.response_ids[t]) for _, n, t in spots])

    def divergence(self, hidden_nd: Tensor, reference_nd: Tensor, items: Sequence[Item], spots: Sequence[Spot]) -> Tensor:
        """[N] KL divergences of the policy from the base at each spot, in nats."""
        return divergence(hidden_nd, reference_nd, self.head, [items[n].encoded.legal_t[t] for _, n, t in spots])


def by_pack(hidden_nd: Tensor, group: Group, items: Sequence[Item]) -> tuple[Tensor, ...]:
    """Divide the hidden states at the choices of a group among its packs."""
    return tuple(hidden_nd.split([len(choices(row, items)) for row in group]))


def before_choices(row: Pack, items: Sequence[Item]) -> list[int]:
    """Positions in a pack of the tokens before its choices: their states predict the choices."""
    return [row.paths[m][len(items[n].encoded.prompt_ids) + t - 1] for m, n, t in choices(row, items)]


def choices(row: Pack, items: Sequence[Item]) -> list[Spot]:
    """List the spots of a pack whose tokens had alternatives."""
    return [(m, n, t) for m, n in enumerate(row.members) for t, trains in enumerate(items[n].encoded.trainable_t) if trains]


def load_policy(
    base_dir: Path,
    parent: Path | None,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    targets: Sequence[str] = ATTENTION,
) -> tuple[Any, Any]:
    """Load tokenizer and base with the parent's adapter, or with a new neutral one that adapts the modules ``targets``.

    Adapters are in float32 whatever the base's precision. In bfloat16 most steps would be rounded away, and the optimizer's second moments
    could not fall.

    Raises CheckpointError: the parent is damaged, is kept by a service, or does not fit the base.
    """
    device = device or best_device()
    if parent is not None and (remote := read_remote(parent)) is not None:
        raise CheckpointError(
            f"The parent is {remote.artifact} at {remote.service}, whose weights are not on this machine. Train there (set WANDB_API_KEY "
            "and unset TRAINER), or set LOCAL_BASE_MODEL to another base to begin a line of its own."
        )
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(base_dir, trust_remote_code=False)
        base = AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=dtype or device.dtype(), attn_implementation="sdpa", trust_remote_code=False
        )
        base = device.place(base)
        if parent is not None:
            try:
                return tokenizer, PeftModel.from_pretrained(base, str(parent), is_trainable=True, torch_device=device.name)
            except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
                raise CheckpointError(f"{parent} cannot be continued from: {first_line(error)}") from error
        layers = base.config.num_hidden_layers
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(targets), layers_to_transform=list(range(int(layers * FROZEN_SHARE), layers))
        )
        return tokenizer, get_peft_model(base, config)
