"""The transaction that freezes a batch of eligible episodes.

Dropout and a maximum are decided by seeded hashes, so that the same seed over the same rows freezes the same batch.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from babylon_rl.errors import TrainingError, UsageError
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.store.batches import Batch, batch_id_taken, lock_registry, read_batch
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.freezing import (
    DROPOUT,
    FreezableEpisode,
    FreezeBounds,
    NewBatch,
    count_unread,
    decided_windows,
    insert_batch,
    lock_freezing,
    look_at_newest,
    record_dropped,
)
from babylon_rl.store.registry import Model, next_version, parent_of_line, reserved_by, version_order, version_taken
from babylon_rl.training.backends import trainer_choice
from babylon_rl.training.eligibility import RULES, Freezable, describe_reasons, freezable_of, freeze_bounds

DROPOUT_FREE = 1000  # trajectories
DROPOUT_MOST = 0.3
DROPOUT_STEADY = math.ceil(DROPOUT_FREE / (1 - DROPOUT_MOST))  # from so many trajectories on the rate is DROPOUT_MOST
# Frozen with a batch, so that a run that is resumed under other settings ends as it began.
FROZEN_SETTINGS = (
    "learning_rate", "batch_size", "gradient_accumulation_steps", "epochs", "iterations", "windows_per_iteration", "kl_penalty",
    "max_grad_norm", "warmup_steps", "max_staleness_versions", "train_purposes", "train_synthetic",
    "min_agents_per_window", "min_actions_per_trajectory", "judge_model", "art_model_name", "wandb_project",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropout:
    """Result of dropout: the requested ``rate``, the kept and the dropped episodes."""

    rate: float
    kept: Sequence[FreezableEpisode]
    dropped: Sequence[FreezableEpisode]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Outcome of freezing: the batch, or None with the reason.

    ``freezable`` counts the available rows; of a full batch only the rows read until it was full.
    """

    batch: Batch | None
    reason: str
    freezable: Freezable
    dropped: int = 0


def freeze(
    connection: Connection,
    settings: Settings,
    now: datetime,
    *,
    windows: tuple[str, str] | None = None,
    max_trajectories: int | None = None,
    seed: int = 0,
    minimum: int = 0,
    settled: bool = False,
) -> Frozen:
    """Freeze one pending batch in one transaction: newest windows first, seeded, at most ``max_trajectories``.

    Args:
        windows: (from, to) instead of the look-back.
        minimum: freezable trajectories below which nothing is frozen.
        settled: leave out hours that automation would not judge yet.

    Raises:
        TrainingError: the settings choose no trainer, or pin a version that is taken.
        UsageError: they pin what is no version, or one below the newest of its line.
        BatchConflict: a trajectory is in a live batch (the unique key says so).
    """
    line = trainer_choice(settings)
    # The locks prevent two batches with the same episodes or version.
    with own_transaction(connection):
        lock_freezing(connection)
        lock_registry(connection)
        bounds = freeze_bounds(connection, settings, now, windows, settled)
        freezable, dropout = _look_and_choose(connection, settings, bounds, max_trajectories, minimum, seed)
        # Too little data freezes nothing; the reason is shown to the user.
        if freezable.trajectories == 0 or freezable.trajectories < minimum:
            return Frozen(None, _too_few(freezable, bounds, minimum), freezable)
        if not dropout.kept:
            return Frozen(
                None,
                f"No episode has as few as {max_trajectories} trajectories: raise --max-trajectories or TRAINING_MAX_TRAJECTORIES.",
                freezable,
            )
        # The batch, its parent, version and settings are written with its dropout.
        parent = parent_of_line(connection, line.base_model, promoted=settings.auto_promote)
        batch_id = _new_batch_id(connection, now)
        new = NewBatch(
            batch_id=batch_id, base_model=line.base_model, backend=line.backend,
            parent_version=None if parent is None else parent.version, version=_version(connection, settings, parent), seed=seed,
            settings={name: getattr(settings, name) for name in FROZEN_SETTINGS},
            dropout={"rate": dropout.rate, "freezable": freezable.trajectories, "dropped": len(dropout.dropped)},
            now=now, episodes=dropout.kept, passes=settings.epochs,
        )  # fmt: skip
        insert_batch(connection, new)
        record_dropped(connection, batch_id, DROPOUT, [(e.window, e.agent_id) for e in dropout.dropped], now)
        return Frozen(read_batch(connection, batch_id), "", freezable, len(dropout.dropped))


def dropout_rate(freezable_trajectories: int) -> float:
    """Dropout rate: 0 up to 1000 freezable trajectories, else min(0.3, 1 - 1000 / total)."""
    if freezable_trajectories <= DROPOUT_FREE:
        return 0.0
    return min(DROPOUT_MOST, 1 - DROPOUT_FREE / freezable_trajectories)


def decide_dropout(
    episodes: Sequence[FreezableEpisode], rate: float, seed: int, min_agents: int, decided: frozenset[str] = frozenset()
) -> Dropout:
    """Drop episodes by a seeded hash; no group falls below ``min_agents``, windows in ``decided`` stay."""
    sizes = {episode.window: episode.group_size for episode in episodes}
    dropped = []
    # Lowest share first, so that in a small group it does not depend on the order of the rows who may still leave.
    for episode in sorted(episodes, key=lambda e: seeded_share(seed, e.window, e.agent_id)):
        leaves = seeded_share(seed, episode.window, episode.agent_id) < rate and episode.window not in decided
        if leaves and sizes[episode.window] > min_agents:
            sizes[episode.window] -= 1
            dropped.append(episode)
    gone = {(episode.window, episode.agent_id) for episode in dropped}
    return Dropout(rate, [e for e in episodes if (e.window, e.agent_id) not in gone], dropped)


def seeded_share(seed: int, *parts: str) -> float:
    """Pseudorandom number in [0, 1) derived from the seed and the parts alone."""
    digest = hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _look_and_choose(
    connection: Connection, settings: Settings, bounds: FreezeBounds, most: int | None, minimum: int, seed: int
) -> tuple[Freezable, Dropout]:
    """Read hours from the newest until no older hour could change the choice any more."""
    episodes: list[FreezableEpisode] = []
    reasons = Counter[str]()
    for eligible, others in look_at_newest(connection, bounds, RULES):
        episodes += eligible
        reasons.update(others)
        freezable = freezable_of(episodes, reasons)
        # Below DROPOUT_STEADY an older hour would still raise the rate, and with it change who is dropped of the hours already read.
        if most is not None and freezable.trajectories >= max(minimum, DROPOUT_STEADY):
            dropout, full = _choose(connection, settings, episodes, freezable, most, seed)
            if full:
                return freezable, dropout
    freezable = freezable_of(episodes, reasons, count_unread(connection, bounds))
    return freezable, _choose(connection, settings, episodes, freezable, most, seed)[0]


def _choose(
    connection: Connection,
    settings: Settings,
    episodes: Sequence[FreezableEpisode],
    freezable: Freezable,
    max_trajectories: int | None,
    seed: int,
) -> tuple[Dropout, bool]:
    # More windows than all iterations together can see would be marked as used without having been trained.
    most = settings.iterations * settings.windows_per_iteration
    newest = sorted({episode.window for episode in episodes}, reverse=True)[:most]
    offered = [episode for episode in episodes if episode.window in set(newest)]
    dropout = decide_dropout(
        offered, dropout_rate(freezable.trajectories), seed, settings.min_agents_per_window, decided_windows(connection, newest)
    )
    chosen, full = _at_most(dropout.kept, max_trajectories, seed)
    # Of an hour that this batch takes nothing of nobody is dropped: its group is decided by the batch that takes it.
    taken = {episode.window for episode in chosen}
    return Dropout(dropout.rate, chosen, [episode for episode in dropout.dropped if episode.window in taken]), full


def _at_most(episodes: Sequence[FreezableEpisode], most: int | None, seed: int) -> tuple[list[FreezableEpisode], bool]:
    """Select episodes with at most ``most`` trajectories; also return True when one did not fit.

    Once an hour is full, no older hour is used for the rest.
    """
    if most is None:
        return list(episodes), False
    # A seeded order within each hour, newest hour first.
    newest_first = sorted(episodes, key=lambda e: seeded_share(seed, "most", e.window, e.agent_id))
    newest_first.sort(key=lambda e: e.window, reverse=True)
    chosen: list[FreezableEpisode] = []
    left = most
    full = False
    for _, hour in groupby(newest_first, key=lambda e: e.window):
        for episode in hour:
            if episode.trajectories <= left:
                chosen.append(episode)
                left -= episode.trajectories
            else:
                full = True
        # Not before something is chosen: an hour whose episodes are all too long must not end the search.
        if full and chosen:
            break
    return sorted(sorted(chosen, key=lambda e: e.agent_id), key=lambda e: e.window, reverse=True), full and bool(chosen)


def _new_batch_id(connection: Connection, now: datetime) -> str:
    # The freeze lock is held, so two batches of one millisecond get following numbers.
    milliseconds = (now - datetime(1970, 1, 1)) // timedelta(milliseconds=1)
    while batch_id_taken(connection, f"batch-{milliseconds}"):
        milliseconds += 1
    return f"batch-{milliseconds}"


def _version(connection: Connection, settings: TrainingSettings, parent: Model | None) -> str:
    pinned = settings.model_version
    if pinned is None:
        return next_version(connection)
    # A pinned version must be well formed, free, above its parent, and not reserved by another batch.
    if version_order(pinned) is None or not pinned.startswith("v"):
        raise UsageError(f"MODEL_VERSION is {pinned!r}: write vMAJOR.MINOR.PATCH, such as {next_version(connection)}.")
    if version_taken(connection, pinned):
        raise TrainingError(f"MODEL_VERSION pins {pinned}, which is registered already; unset it to get {next_version(connection)}.")
    if parent is not None and (version_order(pinned) or ()) < parent.order:
        raise UsageError(
            f"MODEL_VERSION pins {pinned}, which is below {parent.version}, the newest of its line, from which the next training would "
            f"continue; pin a higher one, or unset MODEL_VERSION to get {next_version(connection)}."
        )
    waiting = reserved_by(connection, pinned)
    if waiting is not None:
        raise TrainingError(
            f"MODEL_VERSION pins {pinned}, which {waiting} will be; finish it with `babylon-rl train --batch {waiting}`, cancel it, "
            f"or unset MODEL_VERSION to get {next_version(connection)}."
        )
    return pinned


def _too_few(freezable: Freezable, bounds: FreezeBounds, minimum: int) -> str:
    where = f"in the hours from {bounds.first} to {bounds.end}"
    rest = describe_reasons(freezable.not_trainable)
    number = f"{freezable.trajectories} of {minimum}" if minimum else "No"
    why = f" (not trainable: {rest})." if rest else ", which hold no new ones."
    return f"{number} freezable trajectories {where}{why} `babylon-rl windows` shows every hour; --from and --to choose others."
