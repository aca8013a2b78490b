"""Selection of episodes that may train, and the transaction that freezes a batch of them.

Counting and freezing execute the same ``RULES`` (store/freezing.py), so both always agree. Dropout and a maximum are decided by seeded
hashes, so that the same seed over the same rows freezes the same batch.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from babylon_rl.errors import NoTrainer, TrainingError, UsageError
from babylon_rl.judge.answer_groups import without_answers
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings, TrainingSettings
from babylon_rl.store import scores
from babylon_rl.store.batches import DROPOUT, REGISTRY_LOCK, Batch, batch_id_taken, read_batch, record_dropped
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.freezing import (
    FREEZE_LOCK,
    FreezableEpisode,
    FreezeBounds,
    NewBatch,
    count_episodes,
    count_unread,
    decided_windows,
    insert_batch,
    look_at_newest,
    record_decisions,
)
from babylon_rl.store.registry import Model, next_version, parent_of_line, reserved_by, version_order, version_taken
from babylon_rl.store.training_status import KeptCounts
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.training.backends.protocol import ANSWER_BACKENDS, chosen_trainer, trainer_choice
from babylon_rl.versions import seeded_share
from babylon_rl.windows import HOUR, newest_complete, next_window, window_of, window_range, window_start

UNREAD = "in hours not read yet"  # rows without an episode: counted apart, by the hour
# Reason, and its SQL condition on table ``episode`` of store/freezing.py. Only the first reason that holds is counted, so the order
# matters: reasons that time or a person can cure come last.
RULES = {
    "late_after_training": '"used"',
    "in a live batch": '"held"',
    "left out by dropout": """"left" = 'dropout'""",
    "used as baseline alone": """"left" = 'baseline'""",
    "in short episodes": 'NOT "usable"',
    "synthetic": '"trainableSequences" = 0 AND "syntheticRows" > 0',
    "leak": '"trainableSequences" > 0 AND "trainableSequences" <= "leakedCalls"',
    "without a call that trains": '"trainableSequences" = 0 OR "left" IS NOT NULL',
    "late_after_judging": '"unjudged"',
    "in thin hours": '"usableInHour" < %(min_agents)s',
    "in quarantined hours": '"quarantined"',
    "in groups without spread": '"flat"',
    "changed since the hour was read": '"gone"',
    "in hours not settled": 'NOT "settled"',
}


@dataclass(frozen=True, slots=True)
class Freezable:
    """Number of episodes that a batch could take now, of their trajectories by window, and of other new trajectories by reason."""

    episodes: int
    windows: Mapping[str, int]
    not_trainable: Mapping[str, int]

    @property
    def trajectories(self) -> int:
        return sum(self.windows.values())


def count_eligible(connection: Connection, bounds: FreezeBounds, kept: KeptCounts | None = None) -> Freezable:
    """Count freezable trajectories by window, and the other new ones by reason; ``kept`` are those of the hours that were read."""
    read = kept or count_in_read_hours(connection, bounds)
    return Freezable(read.episodes, read.windows, _most_first(read.not_trainable, count_unread(connection, bounds)))


def count_in_read_hours(connection: Connection, bounds: FreezeBounds) -> Freezable:
    """Count as ``count_eligible``, in the hours that were read."""
    windows: dict[str, int] = {}
    reasons = Counter[str]()
    episodes = 0
    for window, reason, number, trajectories in count_episodes(connection, bounds, RULES):
        if reason is None:
            windows[window] = trajectories
            episodes += number
        else:
            reasons[reason] += trajectories
    return Freezable(episodes, windows, _most_first(reasons, 0))


def freezable_of(episodes: Sequence[FreezableEpisode], reasons: Mapping[str, int], unread: int = 0) -> Freezable:
    return Freezable(len(episodes), dict(sorted(_by_window(episodes).items())), _most_first(reasons, unread))


def _by_window(episodes: Sequence[FreezableEpisode]) -> Counter[str]:
    trajectories = Counter[str]()
    for episode in episodes:
        trajectories[episode.window] += episode.trajectories
    return trajectories


def _most_first(reasons: Mapping[str, int], unread: int) -> dict[str, int]:
    counts = dict(reasons)
    if unread:
        counts[UNREAD] = unread
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def freeze_bounds(
    connection: Connection, settings: Settings, now: datetime, windows: tuple[str, str] | None = None, settled: bool = False
) -> FreezeBounds:
    """Hours considered by freezing: ``windows`` (from, to), else LOOKBACK_HOURS.

    The look-back ends with the newest complete hour with rows.

    ``settled`` asks for hours that an LLM judge may judge by automation (JUDGE_SETTLE_HOURS after their end).
    """
    complete, judged = last_hours(settings, now, settled)
    if windows is not None:
        list(window_range(*windows))  # refuses malformed and backward ranges
        first, end = windows
    else:
        # Counted back from the data, not from the clock: old recordings count as well.
        newest = newest_window_with_rows(connection, complete) or complete
        end = next_window(newest)
        first = window_of(window_start(end) - settings.lookback_hours * HOUR)
    return FreezeBounds(first, end, complete, judged, settings.min_agents_per_window, trained_by(settings))


def trained_by(settings: Settings) -> str:
    """CREDIT, but ``hour`` where it asks for answers and the judge or the trainer takes none."""
    try:
        none = settings.credit == "answers" and (without_answers(settings) or trainer_choice(settings).backend not in ANSWER_BACKENDS)
    except NoTrainer:
        none = False
    return "hour" if none else settings.credit


def last_hours(settings: JudgeSettings, now: datetime, settled: bool) -> tuple[str, str]:
    """The newest complete hour, and the newest that may be judged (``settled``: by automation)."""
    # The heuristic costs nothing and follows late rows at once, so its hours need not settle.
    wait = timedelta(hours=settings.judge_settle_hours) if settled and settings.judge_model != HEURISTIC else timedelta(0)
    return newest_complete(now), newest_complete(now, wait)


def count_freezable(
    connection: Connection, settings: Settings, now: datetime, *, windows: tuple[str, str] | None = None, settled: bool = False
) -> Freezable:
    return count_eligible(connection, freeze_bounds(connection, settings, now, windows, settled))


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Format reasons with their counts: ``204 synthetic, 22 in short episodes``."""
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())


DROPOUT_FREE = 1000  # trajectories
DROPOUT_MOST = 0.3
DROPOUT_STEADY = math.ceil(DROPOUT_FREE / (1 - DROPOUT_MOST))  # from so many trajectories on the rate is DROPOUT_MOST
# Frozen with a batch, so that a run that is resumed under other settings ends as it began.
FROZEN_SETTINGS = (
    "learning_rate", "batch_size", "gradient_accumulation_steps", "epochs", "iterations", "windows_per_iteration", "kl_penalty",
    "max_grad_norm", "warmup_steps", "max_staleness_versions", "train_purposes", "train_synthetic",
    "credit", "min_agents_per_window", "min_actions_per_trajectory", "judge_model", "art_model_name", "wandb_project",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropout:
    """Result of dropout: the requested ``rate``, the kept and the dropped episodes."""

    rate: float
    kept: Sequence[FreezableEpisode]
    dropped: Sequence[FreezableEpisode]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Outcome of freezing: the batch, or None with the reason; ``dropped`` is the number of episodes left to dropout.

    ``remembered`` is for the next look at readiness.
    """

    batch: Batch | None
    reason: str
    dropped: int = 0
    remembered: str | None = None


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
    with own_transaction(connection):
        connection.take_lock(FREEZE_LOCK)
        connection.take_lock(REGISTRY_LOCK)
        bounds = freeze_bounds(connection, settings, now, windows, settled)
        freezable, dropout = _look_and_choose(connection, settings, bounds, max_trajectories, minimum, seed)
        if freezable.trajectories == 0 or freezable.trajectories < minimum:
            return Frozen(None, _too_few(freezable, bounds, minimum))
        if not dropout.kept:
            why = f"No episode has as few as {max_trajectories} trajectories: raise --max-trajectories or TRAINING_MAX_TRAJECTORIES."
            return Frozen(None, why)
        parent = parent_of_line(connection, line.base_model, promoted=settings.auto_promote)
        # The freeze lock is held, so two batches of one millisecond get following numbers.
        milliseconds = (now - datetime(1970, 1, 1)) // timedelta(milliseconds=1)
        while batch_id_taken(connection, batch_id := f"batch-{milliseconds}"):
            milliseconds += 1
        new = NewBatch(
            batch_id=batch_id, base_model=line.base_model, backend=line.backend,
            parent_version=None if parent is None else parent.version, version=_version(connection, settings, parent), seed=seed,
            settings={name: getattr(settings, name) for name in FROZEN_SETTINGS},
            dropout={"rate": dropout.rate, "freezable": freezable.trajectories, "dropped": len(dropout.dropped)},
            now=now, episodes=dropout.kept, passes=settings.epochs,
        )  # fmt: skip
        insert_batch(connection, new)
        record_dropped(connection, batch_id, DROPOUT, [(e.window, e.agent_id) for e in dropout.dropped], now)
        return Frozen(read_batch(connection, batch_id), "", len(dropout.dropped))


def dropout_rate(total: int, free: int = DROPOUT_FREE) -> float:
    """Dropout rate: 0 up to ``free`` freezable trajectories, else min(0.3, 1 - free / total)."""
    return min(DROPOUT_MOST, 1 - free / total) if total > free else 0.0


def decide_dropout(
    episodes: Sequence[FreezableEpisode],
    rate: float,
    seed: int,
    min_agents: int,
    decided: frozenset[str] = frozenset(),
    least_trajectories: int = 0,
) -> Dropout:
    """Drop episodes by a seeded hash.

    Windows in ``decided`` stay, and ``answered`` episodes, without which an hour would train scripts.
    No group falls below ``min_agents``, nor its freezable trajectories below ``least_trajectories``.
    """
    sizes = {episode.window: episode.group_size for episode in episodes}
    freezable = _by_window(episodes)
    dropped = []
    # Lowest share first, so that in a small group it does not depend on the order of the rows who may still leave.
    for episode in sorted(episodes, key=lambda e: seeded_share(seed, e.window, e.agent_id)):
        leaves = seeded_share(seed, episode.window, episode.agent_id) < rate and episode.window not in decided and not episode.answered
        if leaves and sizes[episode.window] > min_agents and freezable[episode.window] - episode.trajectories >= least_trajectories:
            sizes[episode.window] -= 1
            freezable[episode.window] -= episode.trajectories
            dropped.append(episode)
    gone = {(episode.window, episode.agent_id) for episode in dropped}
    return Dropout(rate, [e for e in episodes if (e.window, e.agent_id) not in gone], dropped)


def drop_before_judging(connection: Connection, windows: Sequence[str], settings: Settings, now: datetime) -> Dropout:
    """Decide the dropout of hours that a paid judge is about to see, so that it is asked about the kept episodes alone.

    The rule is that of freezing, for the trajectories in the look-back that could train now; batches keep to the decision. So much stays
    that readiness never waits for the dropped: TRAINING_MIN_TRAJECTORIES, and TRAINING_MIN_GROUP_SIZE in each group. Nothing is decided
    where judging is free or nothing trains, nor of hours that a batch or this function decided on, or that a paid judge has scored.
    """
    if settings.judge_model == HEURISTIC or chosen_trainer(settings) is None:
        return Dropout(0.0, [], [])
    least = max(DROPOUT_FREE, settings.training_min_trajectories)
    with own_transaction(connection):
        connection.take_lock(FREEZE_LOCK)
        paid = {window for window, group in scores.read(connection, windows).items() if group.judge != HEURISTIC}
        wanted = set(windows) - paid - decided_windows(connection, windows)
        episodes: list[FreezableEpisode] = []
        total = 0
        for eligible, _ in look_at_newest(connection, freeze_bounds(connection, settings, now), RULES) if wanted else ():
            episodes += eligible
            total += sum(episode.trajectories for episode in eligible)
            # Older hours raise the rate no more.
            if episodes and episodes[-1].window < min(wanted) and total * (1 - DROPOUT_MOST) >= least:
                break
        ours = [episode for episode in episodes if episode.window in wanted]
        rate = dropout_rate(total, least)
        dropout = decide_dropout(ours, rate, 0, settings.min_agents_per_window, least_trajectories=settings.training_min_group_size)
        record_decisions(connection, sorted({episode.window for episode in ours}), rate, total, now)
        record_dropped(connection, None, DROPOUT, [(e.window, e.agent_id) for e in dropout.dropped], now)
    return dropout


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
    # A seeded order within each hour, newest hour first; answered episodes come first, as in ``decide_dropout``.
    newest_first = sorted(episodes, key=lambda e: (not e.answered, seeded_share(seed, "most", e.window, e.agent_id)))
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


def _version(connection: Connection, settings: TrainingSettings, parent: Model | None) -> str:
    pinned = settings.model_version
    if pinned is None:
        return next_version(connection)
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
