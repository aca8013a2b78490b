"""Discrete-event model of hours that workers read and score, on simpy; its parameters come from capacity_runs.py, capacity.py uses it.

Agents write trajectories into the database, which computes on cores that all share. An hour needs a worker; a worker computes on one
core at a time (Python's lock) of its machine's, or waits for the database; a request needs a place among JUDGE_CONCURRENCY of its run, and
room in the provider's limits of requests and tokens a minute, which all runs share; a batch needs the trainer, which computes on one core
of its own. Not in it: failures, tries that a limit refused, the database's disk, and a database that slows down as it grows.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, Any]
# A long computation gives its core away so often, as an operating system's scheduler does.
QUANTUM_S = 0.05
PLANNED_AT_ONCE = 4  # hours whose requests are rendered together (judge/plan.py)
MINUTE_S = 60.0


@dataclass(frozen=True)
class Costs:
    """Seconds of one core: of a run, an hour before and after its requests, a trajectory before and after them.

    ``report_hour_s`` is what an hour costs at the end of its run, when the last answer is there. Where all cores compute, each takes
    ``crowded`` times as long. ``stored_s``: how long a request keeps its place after the judge's answer, which is stored first. Seconds
    of the database's cores are added: ``write_row_s`` of a trajectory that an agent writes; of a run; of an hour and a trajectory, half
    of them before requests.
    """

    run_s: float = 0.0
    plan_hour_s: float = 0.0
    finish_hour_s: float = 0.0
    plan_row_s: float = 0.0
    finish_row_s: float = 0.0
    report_hour_s: float = 0.0
    stored_s: float = 0.0
    crowded: float = 1.0
    database_run_s: float = 0.0
    database_hour_s: float = 0.0
    database_row_s: float = 0.0
    write_row_s: float = 0.0

    def database_half_s(self, hour: "Hour") -> float:
        """Seconds of the database before an hour's requests, and again after them."""
        return (self.database_hour_s + hour.rows * self.database_row_s) / 2


@dataclass(frozen=True)
class Limits:
    """A provider: seconds that an answer takes, and what it allows in any minute; None is without limit."""

    latency_s: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tokens_per_request: float = 0.0


@dataclass(frozen=True)
class Site:
    """Size of an installation: workers, the cores that they share, JUDGE_CONCURRENCY, trainings at once, cores of the database.

    Without ``database_cores`` the database computes on the workers' cores.
    """

    workers: int = 1
    cores: int = 2
    concurrency: int = 16
    trainers: int = 1
    database_cores: int | None = None


@dataclass(frozen=True)
class Hour:
    """Work of one market hour: its trajectories, and the requests that judge them."""

    rows: int
    requests: int


@dataclass
class Seen:
    """Record of a simulation, in seconds since its start."""

    finished: dict[int, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    waited_s: list[float] = field(default_factory=list)
    trained: list[tuple[float, float, int]] = field(default_factory=list)  # beginning, end, rows

    def add(self, resource: str, seconds: float) -> None:
        """Count the use of a resource."""
        self.busy_s[resource] = self.busy_s.get(resource, 0.0) + seconds


class Budget:
    """Limit of a provider: at most so much within any 60 s, first come, first served."""

    def __init__(self, env: simpy.Environment, per_minute: float) -> None:
        self._env, self._per_minute = env, per_minute
        self._turn = simpy.Resource(env)
        self._spent: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def take(self, amount: float) -> Process:
        """Wait until ``amount`` may be spent."""
        with self._turn.request() as turn:
            yield turn
            while True:
                while self._spent and self._spent[0][0] <= self._env.now - MINUTE_S + 1e-9:
                    self._sum -= self._spent.popleft()[1]
                if not self._spent or self._sum + amount <= self._per_minute:
                    break
                yield self._env.timeout(self._spent[0][0] + MINUTE_S - self._env.now)
            self._spent.append((self._env.now, amount))
            self._sum += amount


class Judge:
    """The provider that all runs ask."""

    def __init__(self, env: simpy.Environment, limits: Limits, seen: Seen) -> None:
        self._env, self._limits, self._seen = env, limits, seen
        allowed = ((limits.requests_per_minute, 1.0), (limits.tokens_per_minute, limits.tokens_per_request))
        self._budgets = [(Budget(env, most), amount) for most, amount in allowed if most is not None]

    def ask(self, places: simpy.Resource, stored_s: float = 0.0) -> Process:
        """One request: a place, room in the limits, the answer, until it is stored."""
        asked = self._env.now
        with places.request() as place:
            yield place
            for budget, amount in self._budgets:
                yield from budget.take(amount)
            self._seen.waited_s.append(self._env.now - asked)
            latency_s = self._limits.latency_s()
            yield self._env.timeout(latency_s + stored_s)
            self._seen.add("judge", latency_s + stored_s)


class Pipeline:
    """Runs of hours on a site, and trainings of what they scored."""

    def __init__(self, site: Site, costs: Costs, limits: Limits) -> None:
        self.env = simpy.Environment()
        self.seen = Seen()
        self._site, self._costs = site, costs
        self._cores = simpy.Resource(self.env, site.cores)
        self._database = simpy.Resource(self.env, site.database_cores) if site.database_cores else self._cores
        self._workers = simpy.Resource(self.env, site.workers)
        self._trainers = simpy.Resource(self.env, site.trainers)
        self._judge = Judge(self.env, limits, self.seen)

    def compute(self, process: simpy.Resource, seconds: float, database_s: float = 0.0) -> Process:
        """Seconds of one core, then of one of the database's, for a process that does one thing at a time."""
        with process.request() as turn:
            yield turn
            yield from self._take("cores", self._cores, seconds)
            yield from self._take("database", self._database, database_s)

    def write(self, rows: float) -> Process:
        """Trajectories that agents write, one after another."""
        yield from self._take("database", self._database, rows * self._costs.write_row_s)

    def _take(self, name: str, cores: simpy.Resource, seconds: float) -> Process:
        while seconds > 1e-9:
            part = min(seconds, QUANTUM_S)
            with cores.request() as core:
                yield core
                took_s = part * (self._costs.crowded if cores is self._cores and cores.count == cores.capacity > 1 else 1.0)
                yield self.env.timeout(took_s)
            self.seen.add(name, took_s)
            seconds -= part

    def run(self, hours: Sequence[tuple[int, Hour]]) -> Process:
        """One run of numbered hours on a free worker."""
        with self._workers.request() as worker:
            yield worker
            began = self.env.now
            python = simpy.Resource(self.env)
            places = simpy.Resource(self.env, self._site.concurrency)
            groups = simpy.Resource(self.env, 2 * self._site.concurrency)  # under way at once (judge/group_judge.py)
            yield from self.compute(python, self._costs.run_s, self._costs.database_run_s)
            judged = []
            for start in range(0, len(hours), PLANNED_AT_ONCE):
                chunk = hours[start : start + PLANNED_AT_ONCE]
                plan_s = sum(self._costs.plan_hour_s + hour.rows * self._costs.plan_row_s for _, hour in chunk)
                slots = [groups.request() for _ in chunk]
                yield slots[0]
                yield from self.compute(python, plan_s, sum(self._costs.database_half_s(hour) for _, hour in chunk))
                for (number, hour), slot in zip(chunk, slots, strict=True):
                    yield slot
                    judged.append(self.env.process(self._judged(python, places, groups, slot, number, hour)))
            yield self.env.all_of(judged)
            yield from self.compute(python, len(hours) * self._costs.report_hour_s)
            self.seen.add("workers", self.env.now - began)

    def _judged(
        self, python: simpy.Resource, places: simpy.Resource, groups: simpy.Resource, slot: Any, number: int, hour: Hour
    ) -> Process:
        asked = [self.env.process(self._judge.ask(places, self._costs.stored_s)) for _ in range(hour.requests)]
        if asked:
            yield self.env.all_of(asked)
        finish_s = self._costs.finish_hour_s + hour.rows * self._costs.finish_row_s
        yield from self.compute(python, finish_s, self._costs.database_half_s(hour))
        groups.release(slot)
        self.seen.finished[number] = self.env.now

    def train(self, rows: int, row_s: float, version_s: float) -> Process:
        """One training with the comparison of its version, in seconds of a core that nothing else uses."""
        with self._trainers.request() as trainer:
            yield trainer
            began = self.env.now
            yield self.env.timeout(rows * row_s + version_s)
            self.seen.trained.append((began, self.env.now, rows))


def _backfill(site: Site, costs: Costs, limits: Limits, hours: Iterable[Hour], hours_per_run: int) -> Pipeline:
    """Pipeline that has scored hours that all waited at its start."""
    pipeline, numbered = Pipeline(site, costs, limits), list(enumerate(hours))
    for start in range(0, len(numbered), hours_per_run):
        pipeline.env.process(pipeline.run(numbered[start : start + hours_per_run]))
    pipeline.env.run()
    return pipeline


def backfill_s(site: Site, costs: Costs, limits: Limits, hours: Iterable[Hour], hours_per_run: int = 24) -> float:
    """Seconds of a backfill, from the start of its first run to the end of its last."""
    return float(_backfill(site, costs, limits, hours, hours_per_run).env.now)


def scoring_span_s(site: Site, costs: Costs, limits: Limits, hours: Iterable[Hour], hours_per_run: int = 24) -> float:
    """Seconds of a backfill from the first hour's scores to the last hour's."""
    finished = _backfill(site, costs, limits, hours, hours_per_run).seen.finished.values()
    return max(finished) - min(finished)


@dataclass(frozen=True)
class Steady:
    """Some hours of a game as they come.

    ``scored_after_s`` is from an hour's end to its scores, of the latest hour; ``growing`` is True where the last waits longer than the
    first, or a resource is too small. ``used`` is the share of a resource that the work of an hour takes, above 1 where it does not fit;
    ``trained_share`` the share of new trajectories that the trainers use.
    """

    scored_after_s: float
    growing: bool
    used: dict[str, float]
    trained_share: float


def steady(
    site: Site, costs: Costs, limits: Limits, hour: Hour, *, hours: int, batch_rows: int, train_row_s: float, version_s: float
) -> Steady:
    """Play ``hours`` like ``hour``, one every 3,600 s.

    Agents write an hour's trajectories evenly in it, and a run begins at its end. A training is frozen whenever a trainer is free, of at
    most ``batch_rows``.
    """
    pipeline = Pipeline(site, costs, limits)
    env, seen = pipeline.env, pipeline.seen

    def game() -> Process:
        work = []
        for number in range(hours):
            for _ in range(60):
                work.append(env.process(pipeline.write(hour.rows / 60)))
                yield env.timeout(MINUTE_S)
            work.append(env.process(pipeline.run([(number, hour)])))
        yield env.all_of(work)

    frozen = 0

    def trainings() -> Process:
        nonlocal frozen
        while True:
            rows = min(batch_rows, len(seen.finished) * hour.rows - frozen)
            frozen += rows
            yield env.process(pipeline.train(rows, train_row_s, version_s)) if rows else env.timeout(60)

    for _ in range(site.trainers):
        env.process(trainings())
    env.run(until=env.process(game()))
    late = [seen.finished[number] - 3600.0 * (number + 1) for number in range(hours)]
    there = {"cores": site.cores, "database": site.database_cores or site.cores}
    there |= {"workers": site.workers, "judge": site.concurrency * site.workers}
    used = {name: seen.busy_s.get(name, 0.0) / count / hours / 3600 for name, count in there.items()}
    growing = late[-1] > late[0] + 60 or max(used.values()) > 1
    return Steady(max(late), growing, used, _trained_share(seen.trained, hour.rows))


def _trained_share(trainings: Sequence[tuple[float, float, int]], rows_per_hour: int) -> float:
    """Share of new rows that is trained on, from the first training's start to the last one's end."""
    if not trainings:
        return 0.0
    took_s = max(end for _, end, _ in trainings) - min(start for start, _, _ in trainings)
    return min(1.0, sum(rows for _, _, rows in trainings) / rows_per_hour * 3600 / took_s)
