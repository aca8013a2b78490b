"""Play: players and snapshots in, results out, each stored when it ends.

A player is identified by weights, prompt or code, not by name. Players play under one mandate, alone in each market and, for one tick, with
the same stake, so that only decisions differ.

Strategies are played one after another in the calling thread, runs of models several at once in threads, as their server answers waiting
requests in one batch. A model that stays down loses its remaining runs, not those of the others. A caller that leaves, interrupted or not,
ends the runs under way at their next tick.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event, Lock

from babylon_rl.errors import MarketError, ModelUnavailable, UsageError
from babylon_rl.evaluation.ceiling import ceiling_of, ceiling_usd, errors_by_kind, expected_usd
from babylon_rl.evaluation.gate import STRATEGY
from babylon_rl.evaluation.metrics import RunLabel, decision_lines, market_result, result_id, result_of
from babylon_rl.evaluation.results import ANSWERS, SUFFIX, CamelCase, Result, RunFiles, gate_files, resumable_client
from babylon_rl.evaluation.snapshots import GATE_PLAYER_ID, Snapshot
from babylon_rl.llm.client import ChatClient
from babylon_rl.market import simulation
from babylon_rl.market.simulation import strategies
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD, AgentFactory, Mandate
from babylon_rl.market.simulation.games import ONE_TICK_GAME, POSITIONS, Game
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.run import OnTick
from babylon_rl.market.simulation.run import play as simulate
from babylon_rl.market.simulation.strategies import NAMES, PLAYERS
from babylon_rl.progress import Progress, no_progress
from babylon_rl.store.benchmarks import MarketResult, read_results
from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

MODEL = "model"
KNOW_MORE = ("news-reader", "oracle")  # than a prompt shows
TEMPERATURE = 0.0
PLAYER_ID = "player"  # the same id for all players, so that luck by id is the same
CONCURRENCY, GATE_CONCURRENCY = 8, 24  # runs of models at once; at the gate a first look's, by default
UPDATES_PER_RUN = 20
MARKETS = "market"  # names of the threads that play models' runs begin so
DECISIONS = "decisions"
Make = Callable[[Snapshot, Path | None], AgentFactory]
_LOG = logging.getLogger("babylon_rl.evaluation")


@dataclass(frozen=True)
class Player:
    """An agent that plays every market.

    Attributes:
        name: in tables. identity: a hash of what decides; results of another identity are another player's.
        role: STRATEGY, or MODEL of one that waits for an endpoint, so that several of its markets are played at once.
        make: the factory of its agents for one market; the path is where a model's answers are kept while the run lasts.
        game: what it plays; None of players that know more than the prompt shows, whose decisions have no expected value by it.
    """

    name: str
    identity: str
    role: str
    mandate: Mandate
    make: Make
    game: Game | None = None


def scripted(name: str, mandate: Mandate = ONE_TICK) -> Player:
    """A strategy of the roster; its identity changes with the engine's code.

    Raises:
        MarketError: there is none of that name.
    """
    if name not in PLAYERS:
        raise MarketError(f"There is no strategy {name!r}; there are {', '.join(PLAYERS)}.")
    # Strategies are code: another engine is another player.
    identity = content_version(["roster", name, mandate, engine_version()])

    def make(snapshot: Snapshot, _: Path | None) -> AgentFactory:
        # For one tick with the common stake, else with its own.
        return strategies.factory(name, snapshot.scenario, mandate, stake_usd=STAKE_USD if mandate == ONE_TICK else None)

    game = ONE_TICK_GAME if mandate == ONE_TICK else POSITIONS
    return Player(name, identity, STRATEGY, mandate, make, None if name in KNOW_MORE else game)


def gate_script(name: str, game: Game, stake_usd: float | None = None) -> Player:
    """A strategy in the gate's markets of a game, at a stake of its own if one is given; its name then says it."""

    def make(snapshot: Snapshot, _: Path | None) -> AgentFactory:
        common = STAKE_USD if game.mandate == ONE_TICK else None
        return strategies.player(name, snapshot.scenario, game, stake_usd if stake_usd is not None else common)

    own = scripted(name, game.mandate)
    identity = content_version([own.identity, game.name, stake_usd])
    return replace(own, name=staked(name, stake_usd), identity=identity, make=make, game=own.game and game)


def staked(name: str, stake_usd: float | None) -> str:
    return name if stake_usd is None else f"{name} at ${stake_usd:,.0f}"


def endpoint_player(
    open_client: Callable[[], ChatClient],
    name: str,
    identity: str,
    game: Game = ONE_TICK_GAME,
    *,
    temperature: float = TEMPERATURE,
) -> Player:
    """A model behind an endpoint.

    Args:
        open_client: gives the client, each time the same; called when there is something to ask, from several threads.
        identity: of the served model: a hash of weights, or the endpoint's address and the model's name.
    """

    def make(_: Snapshot, answers: Path | None) -> AgentFactory:
        # Opened by the run that needs it, which may be in another thread.
        client = open_client() if answers is None else resumable_client(open_client(), answers)
        return model_agent(client, game=game, temperature=temperature, name=name)

    return Player(name, content_version(["model", identity, game.name, temperature]), MODEL, game.mandate, make, game)


def external_identity(name: str, mandate: str) -> str:
    """Identity of an agent that plays over HTTP, from its name and mandate."""
    return content_version(["outside", name, mandate])


@cache
def engine_version() -> str:
    """Hash of the code of markets, strategies and prompts. Results of two versions are never mixed unseen."""
    digest = hashlib.sha256()
    code = Path(simulation.__path__[0])
    # Sorted, so that the hash is the same on every file system.
    for path in [*sorted(code.glob("*.py")), *sorted((code.parent / "prompts").glob("*.txt"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


Outcome = Result | ModelUnavailable


@dataclass(frozen=True)
class Job:
    """One run to play.

    Attributes:
        luck: the seed of the player and of the order of fills; agent_id: the player's id in the market.
        files: where the run is kept, if it is; resumable: whether a part of it is kept too, and a model's answers, to go on with them.
    """

    player: Player
    snapshot: Snapshot
    label: RunLabel
    luck: int | str
    agent_id: str = PLAYER_ID
    files: RunFiles | None = None
    resumable: bool = False

    def result(self, on_tick: OnTick) -> Result:
        """Simulate the run and keep it where it is to be kept."""
        # The gate keeps no answers: there a market is the unit, stored when it ends and played anew when it was cut off.
        answers = self.files.path(ANSWERS) if self.files is not None and self.resumable else None
        agents, money = {self.agent_id: self.player.make(self.snapshot, answers)}, self.snapshot.start_balance
        run = simulate(self.snapshot.scenario, agents, seed=self.luck, start_balance=money, on_tick=on_tick)
        result = result_of(run, self.agent_id, self.snapshot, self.label)
        if self.files is not None and (self.resumable or result.complete):
            try:
                self.files.keep(result, decision_lines(run, self.agent_id))
            except OSError as error:
                if self.resumable:
                    raise
                # A market of the gate was played, perhaps paid for: its row counts without files.
                words = "The decisions of %s in %s are not kept: %s. Its result counts all the same."
                _LOG.warning(words, result.agent_id, result.benchmark_id, error)
        return result


class _Interrupted(Exception):
    """The caller has left; runs in other threads end at their next tick."""


def play(
    jobs: Sequence[Job], concurrency: int, on_decisions: Callable[[int], None] = lambda count: None
) -> Generator[tuple[int, Outcome], None, None]:
    """Play every job; yield its place and its result, or the error of its endpoint, as it ends. Closing the generator ends the others.

    Args:
        concurrency: runs of models at once.
        on_decisions: called now and then with the number of decisions made since, from several threads.
    """
    leaving, down = Event(), dict[str, ModelUnavailable]()

    def outcome_of(job: Job) -> Outcome:
        name, every = job.player.name, max(1, job.snapshot.scenario.ticks // UPDATES_PER_RUN)

        def on_tick(done: int, of: int) -> None:
            if leaving.is_set():
                raise _Interrupted
            if done % every == 0 or done == of:
                on_decisions((done - 1) % every + 1)

        # A model that is down is not tried again in every market.
        if name in down:
            return down[name]
        try:
            result = job.result(on_tick)
        except ModelUnavailable as unavailable:  # it could not even be begun
            return down.setdefault(name, unavailable)
        if result.stopped is not None:
            down.setdefault(name, ModelUnavailable(result.stopped))
        return result

    with ThreadPoolExecutor(max(1, concurrency), MARKETS) as pool:
        try:
            futures = {pool.submit(outcome_of, job): place for place, job in enumerate(jobs) if job.player.role == MODEL}
            for place, job in enumerate(jobs):
                if job.player.role != MODEL:
                    yield place, outcome_of(job)
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Also after an exception: threads end at their next tick, queued runs never begin.
            leaving.set()
            pool.shutdown(cancel_futures=True)


class Unfinished(CamelCase, frozen=True):
    """A run that is not complete, how far it came, and why in words."""

    agent: str
    benchmark_id: str
    repeat: int
    ticks_processed: int
    ticks: int
    reason: str


@dataclass(frozen=True)
class BenchmarkRuns:
    """Results of a benchmark by player, snapshot and repeat, with their files, and the missing runs.

    ``played`` were finished now, ``known`` before.
    """

    results: list[Result]
    files: list[Path]
    unfinished: list[Unfinished]
    played: int
    known: int


def benchmark_results(
    players: Sequence[Player],
    snapshots: Sequence[Snapshot],
    directory: Path,
    *,
    repeats: int = 1,
    seed: int | str = 0,
    concurrency: int = CONCURRENCY,
    again: bool = False,
    on_progress: Progress = no_progress,
) -> BenchmarkRuns:
    """Results of players in snapshots from a directory; runs that it does not hold yet are played.

    Args:
        repeats: how often each player plays each snapshot, with other seeds; they count as one market in comparisons.
        seed: of the repeats; results of another seed are other results.
        concurrency: runs of models at once.
        again: first remove what the directory holds of these runs.
        on_progress: called with (label, decisions made, of how many).

    Raises:
        UsageError: two players have one name, or there is nothing to play.
    """
    names = [player.name for player in players]
    if len(set(names)) != len(names) or not players or not snapshots or repeats < 1:
        raise UsageError(f"Give each agent once, a snapshot and 1 repeat at least: {', '.join(names)}, {len(snapshots)}, {repeats}.")
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [_job(player, snapshot, repeat, seed, directory) for player in players for snapshot in snapshots for repeat in range(repeats)]
    files = {job.label.key: job.files for job in jobs if job.files is not None}
    # Removed first, so that an interrupted repeat never mixes old and new runs.
    if again:
        for run_files in files.values():
            run_files.remove()
    # Finished runs are read, not played: a second call goes on. A file that cannot be read is played again and replaced.
    finished = {key: result for key, run_files in files.items() if (result := run_files.finished()) is not None}
    missing = [job for job in jobs if job.label.key not in finished]
    total, made, lock = sum(job.snapshot.scenario.ticks for job in missing), 0, Lock()
    results, unfinished = dict(finished), dict[str, Unfinished]()

    def tell(decisions: int) -> None:
        nonlocal made
        with lock:
            made += decisions
            on_progress(DECISIONS, made, total)

    with closing(play(missing, concurrency, tell)) as ended:
        for place, outcome in ended:
            job = missing[place]
            if isinstance(outcome, Result) and outcome.complete:
                results[job.label.key] = outcome
                continue
            ticks, reason = 0, f"Not begun: {outcome}"
            if isinstance(outcome, Result):
                ticks, reason = outcome.ticks_processed, outcome.stopped or "it was left early"
            unfinished[job.label.key] = Unfinished(
                agent=job.player.name,
                benchmark_id=job.snapshot.id,
                repeat=job.label.repeat,
                ticks_processed=ticks,
                ticks=job.snapshot.scenario.ticks,
                reason=reason,
            )
    return BenchmarkRuns(
        [results[key] for key in files if key in results],
        [files[key].path(SUFFIX) for key in files if key in results],
        [unfinished[key] for key in files if key in unfinished],
        len(results) - len(finished),
        len(finished),
    )


def _job(player: Player, snapshot: Snapshot, repeat: int, seed: int | str, directory: Path) -> Job:
    # The key names everything that could change the result.
    engine = engine_version()
    key = content_version([player.identity, engine, snapshot.digest, snapshot.start_balance, str(seed), repeat])
    label = RunLabel(player.name, player.identity, player.role, player.mandate, seed, repeat, key, engine, player.game)
    return Job(player, snapshot, label, f"{seed}/{repeat}", files=RunFiles(directory, player.name, key), resumable=True)


def market_rows(
    jobs: Sequence[Job],
    concurrency: int = GATE_CONCURRENCY,
    *,
    on_row: Callable[[Job, MarketResult], None] = lambda job, row: None,
) -> list[MarketResult]:
    """Play runs in the gate's markets; returns their rows in the order of ``jobs``.

    ``on_row`` is called as each of them ends.

    Raises:
        ModelUnavailable: an endpoint stays down; markets under way are finished and passed on, those of this player that have not begun are
            given up.
    """
    rows, stopped, not_begun = dict[int, MarketResult](), list[ModelUnavailable](), list[ModelUnavailable]()
    with closing(play(jobs, concurrency)) as ended:
        for place, outcome in ended:
            job = jobs[place]
            if isinstance(outcome, ModelUnavailable):
                not_begun.append(outcome)
            elif not outcome.complete:
                stopped.append(ModelUnavailable(f"{job.player.name} in {job.snapshot.id}: {outcome.stopped}"))
            else:
                rows[place] = market_result(outcome, job.snapshot)
                on_row(job, rows[place])
    # Raised at the end, after every market under way was passed on: a run that stopped before those that were not begun for it.
    if failures := [*stopped, *not_begun]:
        raise failures[0]
    return [rows[place] for place in range(len(jobs))]


def gate_key(identity: str, fingerprint: str) -> str:
    """Key of a player's run in a market of the gate, from the two hashes that its row is stored under."""
    return content_version([identity, fingerprint])


def gate_job(player: Player, snapshot: Snapshot, home: Path | None = None) -> Job:
    """A run in a market of the gate: its luck is fixed with the market.

    Its decisions are kept in the state directory ``home``, for looking at; where they cannot be written, that is logged.
    """
    if home is None:  # the row that is used alone says nothing of optimality: the oracle need not play
        snapshot = replace(snapshot, known_best=0.0)
    files = gate_files(home, player.name, snapshot.id, snapshot.game.name) if home is not None else None
    key = gate_key(player.identity, snapshot.fingerprint) if files is not None else snapshot.id
    label = RunLabel(player.name, player.identity, player.role, player.mandate, snapshot.seed, 0, key, engine_version(), player.game)
    return Job(player, snapshot, label, snapshot.seed, GATE_PLAYER_ID, files)


def known_rows(connection: Connection, player: str, identity: str, snapshots: Sequence[Snapshot], home: Path) -> dict[str, MarketResult]:
    """Stored rows of a model by market, with expected dollars and errors where its decisions are at hand."""
    by_id = {snapshot.id: snapshot for snapshot in snapshots}
    rows = read_results(connection, player, identity, {snapshot.id: snapshot.fingerprint for snapshot in snapshots})
    return {market: appraised_row(row, player, identity, by_id[market], home) for market, row in rows.items()}


def appraised_row(row: MarketResult, player: str, identity: str, snapshot: Snapshot, home: Path) -> MarketResult:
    """A stored row with expected dollars and errors, where the decisions behind it are in the state directory ``home``."""
    # Runs of every game once had the name that those of the first game still have.
    for files in dict.fromkeys((snapshot.game.name, ONE_TICK_GAME.name)):
        played = gate_files(home, player, snapshot.id, files).finished()
        # Of other weights, of another game, or of the market before it changed, the id is another.
        if played is not None and played.id == result_id(gate_key(identity, snapshot.fingerprint)):
            usd, kinds = expected_usd(played, snapshot), errors_by_kind(played, snapshot)
            return replace(row, expected_usd=usd, ceiling_usd=ceiling_usd(snapshot), errors=kinds)
    return row


_STRATEGY_ROWS: dict[tuple[str, ...], MarketResult] = {}


def script_rows(
    snapshots: Sequence[Snapshot], names: Sequence[str] | None = None, stake_usd: float | None = None
) -> dict[str, tuple[str, list[MarketResult]]]:
    """Strategies in the gate's markets, by name: role and rows. By default all of them, and the best play by the prompt.

    A stake of its own is rounded to whole dollars, and the name says it. 24 markets of all strategies take about a second. A process plays
    each once: a strategy's row is a function of the market.
    """
    if names is None:
        ceiling = ceiling_of(snapshots[0])
        names = NAMES if ceiling is None else (*NAMES, ceiling.name)
    # What the name says is what is staked: rows are known by their names.
    stake_usd = None if stake_usd is None else float(round(stake_usd))
    return {staked(name, stake_usd): (STRATEGY, [_script_row(name, snapshot, stake_usd) for snapshot in snapshots]) for name in names}


def _script_row(name: str, snapshot: Snapshot, stake_usd: float | None) -> MarketResult:
    key = staked(name, stake_usd), snapshot.game.name, snapshot.id, snapshot.scenario.digest, snapshot.seed
    if key not in _STRATEGY_ROWS:
        (_STRATEGY_ROWS[key],) = market_rows([gate_job(gate_script(name, snapshot.game, stake_usd), snapshot)])
    return _STRATEGY_ROWS[key]
