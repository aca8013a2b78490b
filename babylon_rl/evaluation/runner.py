"""Contestants x markets x repeats, each run kept in a results directory as soon as it is over, so that a second call goes on.

Scripts are played one after another in this process, runs of models several at once in threads. A model that stays down loses its
remaining runs, not those of the others; what it had played is kept, and the next call asks only for what is missing.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from babylon_rl.errors import MarketError, ModelUnavailable, UsageError
from babylon_rl.evaluation.contestants import Contestant, engine_version
from babylon_rl.evaluation.result_building import Market, Played, decision_lines, result_of
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.run_files import RunFiles
from babylon_rl.market.simulation.run import Run, play
from babylon_rl.progress import Progress, unheard
from babylon_rl.versions import content_version

SEAT = "player"  # the same for everybody, so that luck by seat is the same
CONCURRENCY = 8
TOLD_PER_RUN = 20
DECISIONS = "decisions"


@dataclass(frozen=True)
class Unfinished:
    """A run that is not complete, how far it came, and why in words."""

    agent: str
    snapshot: str
    repeat: int
    ticks_played: int
    ticks: int
    reason: str


@dataclass(frozen=True)
class BenchmarkRuns:
    """What a benchmark came to: results in the order of contestants, markets and repeats, and what is missing.

    ``played`` were finished now, ``known`` before. ``files`` are the results' files.
    """

    results: list[Result] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    played: int = 0
    known: int = 0


@dataclass(frozen=True)
class _Job:
    contestant: Contestant
    market: Market
    repeat: int
    engine: str
    key: str
    files: RunFiles


class _Interrupted(Exception):
    """The benchmark is being left; runs in other threads end at their next tick."""


def run_benchmark(
    contestants: Sequence[Contestant],
    markets: Sequence[Market],
    directory: Path,
    *,
    repeats: int = 1,
    seed: int | str = 0,
    concurrency: int = CONCURRENCY,
    again: bool = False,
    engine: str | None = None,
    on_progress: Progress = unheard,
) -> BenchmarkRuns:
    """Play what the directory does not hold yet.

    Args:
        repeats: how often each contestant plays each market, with other seeds; they count as one market in comparisons.
        seed: of the repeats; results of another seed are other results.
        concurrency: runs of models at once.
        again: first remove what the directory holds of these runs.
        engine: the version of the code that plays, by default what it is; results of another version are other results.
        on_progress: is told (what, decisions made, of how many).

    Raises:
        UsageError: two contestants have one name, or there is nothing to play.
    """
    names = [contestant.name for contestant in contestants]
    if len(set(names)) != len(names) or not contestants or not markets or repeats < 1:
        raise UsageError(f"Give each agent once, a snapshot and 1 repeat at least: {', '.join(names)}, {len(markets)}, {repeats}.")
    directory.mkdir(parents=True, exist_ok=True)
    engine = engine or engine_version()
    jobs = [_job(one, market, repeat, seed, engine, directory) for one in contestants for market in markets for repeat in range(repeats)]
    if again:
        for job in jobs:
            job.files.remove()
    known = {job.key: result for job in jobs if (result := _finished(job)) is not None}
    missing = [job for job in jobs if job.key not in known]
    told = _Told(on_progress, sum(job.market.scenario.ticks for job in missing))
    found = dict(known)
    unfinished: dict[str, Unfinished] = {}
    for job, outcome in _played(missing, seed, concurrency, told):
        if isinstance(outcome, Result) and outcome.complete:
            found[job.key] = outcome
        else:
            unfinished[job.key] = _unfinished(job, outcome)
    return BenchmarkRuns(
        [found[job.key] for job in jobs if job.key in found],
        [job.files.path(".json") for job in jobs if job.key in found],
        [unfinished[job.key] for job in jobs if job.key in unfinished],
        len(found) - len(known),
        len(known),
    )


def _job(contestant: Contestant, market: Market, repeat: int, seed: int | str, engine: str, directory: Path) -> _Job:
    key = content_version([contestant.identity, engine, market.digest, market.start_balance, str(seed), repeat])
    return _Job(contestant, market, repeat, engine, key, RunFiles(directory, contestant.name, key))


def _finished(job: _Job) -> Result | None:
    try:
        return job.files.finished()
    except MarketError:  # a file that cannot be read is played again and replaced
        return None


def _unfinished(job: _Job, outcome: Result | str) -> Unfinished:
    ticks, reason = (0, outcome) if isinstance(outcome, str) else (outcome.ticks_processed, outcome.stopped or "it was left early")
    return Unfinished(job.contestant.name, job.market.id, job.repeat, ticks, job.market.scenario.ticks, reason)


def _played(jobs: Sequence[_Job], seed: int | str, concurrency: int, told: "_Told") -> Iterator[tuple[_Job, Result | str]]:
    """Every job with its result, or with why it was not begun; models' runs go on in threads while scripts are played here."""
    leaving, down = Event(), dict[str, str]()
    asking = [job for job in jobs if job.contestant.asks]
    with ThreadPoolExecutor(max(1, min(concurrency, len(asking) or 1))) as pool:
        futures: list[tuple[_Job, Future[Result | str]]] = []
        try:
            futures = [(job, pool.submit(_play_unless_down, job, seed, told, leaving, down)) for job in asking]
            for job in jobs:
                if not job.contestant.asks:
                    yield job, _play(job, seed, told, leaving)
            for job, future in futures:
                yield job, future.result()
        finally:
            leaving.set()
            for _, future in futures:
                future.cancel()


def _play_unless_down(job: _Job, seed: int | str, told: "_Told", leaving: Event, down: dict[str, str]) -> Result | str:
    name = job.contestant.name
    if name in down:
        return f"Not begun: {down[name]}"
    try:
        result = _play(job, seed, told, leaving)
    except ModelUnavailable as unavailable:  # it could not even be begun
        down.setdefault(name, str(unavailable))
        return f"Not begun: {unavailable}"
    if result.stopped is not None:
        down.setdefault(name, result.stopped)
    return result


def _play(job: _Job, seed: int | str, told: "_Told", leaving: Event) -> Result:
    contestant, market = job.contestant, job.market
    every = max(1, market.scenario.ticks // TOLD_PER_RUN)

    def on_tick(done: int, of: int) -> None:
        if leaving.is_set():
            raise _Interrupted
        if done % every == 0 or done == of:
            told.more(every if done % every == 0 else done % every)

    run = play(
        market.scenario,
        {SEAT: contestant.make(market, job.files)},
        seed=f"{seed}/{job.repeat}",
        start_balance=market.start_balance,
        on_tick=on_tick,
    )
    return _keep(run, job, seed)


def _keep(run: Run, job: _Job, seed: int | str) -> Result:
    one = job.contestant
    played = Played(one.name, one.identity, one.role, one.mandate, seed, job.repeat, job.key, job.engine)
    result = result_of(run, SEAT, job.market, played)
    job.files.keep(result, decision_lines(run, SEAT))
    return result


class _Told:
    """Progress from several threads."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self._tell, self._total, self._done, self._lock = on_progress, total, 0, Lock()

    def more(self, decisions: int) -> None:
        with self._lock:
            self._done += decisions
            self._tell(DECISIONS, self._done, self._total)
