"""Schedules of the whole loop under faults: drawn from a seed, checked after every step, repeated by the same seed.

Actors (actors.py) run one at a time against a real Postgres, the scripted judge and, by the seed, the dry trainer, the CPU trainer on the
tiny model or the stand-in of the training service. Versions of the CPU trainer play the gate's markets, with a stand-in for the model
server; the gate's reports on the others are drawn, as these have no weights to play with. At the end all faults cease, everything is run to
its end, and nothing may be missing. ``make faults`` runs 1,000.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from babylon_rl.errors import BabylonError, NothingToTrain
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.training.freezing import count_freezable
from babylon_rl.windows import HOUR, window_of
from babylon_rl_tests.evaluation.endpoint import Endpoint, Rule, alternates, hold, reads_news, reads_wrongly
from babylon_rl_tests.faults import actors
from babylon_rl_tests.faults.actors import AGENTS, Actor, Scene
from babylon_rl_tests.faults.lives import Fault, FaultKind, Life, killed
from babylon_rl_tests.faults.public_tables import OTHERS_TRAJECTORY, PublicTables, insert_rows_of_others
from babylon_rl_tests.faults.world import FOREIGN_ROWS, World, check, rows
from babylon_rl_tests.judge.scripted_server import Judge
from babylon_rl_tests.rows import START, insert
from babylon_rl_tests.training.serverless_stand_in import StandIn

STEPS = 18
LOOP = ("recorder", "hours", "judge", "freezer", "trainer", "gate", "releaser", "gateway", "writer of calls")
# An actor, how often it is chosen out of the loop's turn, and about how many boundaries it passes.
ACTORS: dict[str, tuple[Actor, int, int]] = {
    "recorder": (actors.record, 5, 18),
    "late rows": (actors.record_late, 2, 18),
    "gateway": (actors.call_gateway, 2, 24),
    "writer of calls": (actors.write_calls, 2, 15),
    "observer": (actors.observe, 1, 3),
    "hours": (actors.read_hours, 4, 60),
    "judge": (actors.judge, 4, 200),
    "freezer": (actors.freeze_batch, 3, 30),
    "trainer": (actors.train, 6, 300),
    "gate": (actors.decide, 3, 60),
    "releaser": (actors.release, 3, 15),
    "cleanup": (actors.clean, 2, 24),
    "giver-up": (actors.give_up, 1, 8),
    "other producer": (actors.take_number, 1, 3),
}
PLAYED = 400  # boundaries of a gate that plays its markets
# Places of an actor where most is at stake, which are drawn more often.
STAKES: dict[str, tuple[str, ...]] = {
    "judge": ("INSERT INTO babylon_rl.judge_leases", "WITH given AS MATERIALIZED"),
    "trainer": (
        "WITH given AS MATERIALIZED", "os.rename", "INSERT INTO public.trained_models", "row written", "answered", "id written",
        "end written",
    ),
    "gateway": ("the gateway answers", "os.rename"),
    "writer of calls": ("committed", "os.remove"),
    "freezer": ("commit",),
}  # fmt: skip
# Those that may be killed as a process of their own: what they keep is in the database alone.
KILLABLE = ("hours", "judge", "freezer", "trainer", "gate", "writer of calls", "cleanup")
KINDS: tuple[FaultKind, ...] = ("dies", "dies", "loses its connections", "loses a commit's answer", "finds the disk full")
# Shares of the judge's answers; a client waits in real time after those of the connection, so that these are rare.
JUDGE_FAULTS = {
    "server-error": 0.03, "reset": 0.03, "reset-mid-body": 0.03, "web-page": 0.03, "slow-stream": 0.1, "time-out": 0.1,
    "missing-id": 0.2, "duplicate-id": 0.2, "nan": 0.2, "out-of-range": 0.2, "truncated": 0.2, "empty": 0.2, "refusal": 0.2,
}  # fmt: skip
# A slow answer comes well within the judge's time limit, which is short only where an answer may not come at all.
SLOW_S, SHORT_LIMIT_S = 0.4, 3.0
POST_FAULTS = ("429", "drop_after", "reset_after", "500_after", "garbled_after")
JOB_FAULTS = ("zero", "fails", "nan", "no_step", "steps_but_fails")
SURVIVED = (BabylonError, psycopg.Error, OSError)

_HALF_JUDGED = """
SELECT "window" FROM babylon_rl.group_scores g
WHERE (SELECT count(*) FROM babylon_rl.episode_scores s WHERE s."window" = g."window") <> g."groupSize"
"""
_UNPROVEN = """
SELECT version FROM public.trained_models m WHERE status = 'deployed'
AND NOT EXISTS (SELECT FROM babylon_rl.releases r WHERE r."version" = m.version AND r."decision" = 'pass')
UNION ALL
SELECT "version" FROM babylon_rl.rollouts o WHERE "state" IN ('candidate', 'rolling', 'paused', 'released')
AND NOT EXISTS (SELECT FROM babylon_rl.releases r WHERE r."version" = o."version" AND r."decision" = 'pass')
"""
_DEAD_LEASES = r"""UPDATE babylon_rl.judge_leases SET "holder" = regexp_replace("holder", '/[0-9]+[.][0-9]+/', '/0.00/')"""
_EXPIRED_LEASES = """UPDATE babylon_rl.judge_leases SET "holder" = 'elsewhere/1/0.00/1', "seenAt" = "seenAt" - interval '1 minute'"""
_ANSWERS = """
SELECT count(*), count(*) FILTER (WHERE "retired" AND cardinality("faults") = 0) FROM babylon_rl.judge_requests
"""
_UNJUDGED = """
SELECT "window", "state" FROM babylon_rl.windows w WHERE w."usableEpisodes" > 1
AND NOT EXISTS (SELECT FROM babylon_rl.group_scores g WHERE g."window" = w."window")
AND NOT EXISTS (SELECT FROM babylon_rl.judge_quarantine q WHERE q."window" = w."window")
UNION ALL SELECT "window", 'pending' FROM babylon_rl.judge_pending
"""
_DEPLOYED = "SELECT version FROM public.trained_models WHERE status = 'deployed'"

_TRAINED_OF_VERSIONS = """
SELECT count(*) FROM public.trajectories t WHERE "usedInTraining" AND EXISTS (SELECT FROM public.llm_call_logs l
JOIN babylon_rl.rollouts r ON l.metadata::jsonb ->> 'modelVersion' = r."version"
WHERE l."trajectoryId" = t."trajectoryId" AND r."state" IN ('released', 'superseded', 'rolled_back'))
"""
_TRAINED = """SELECT count(*), count(*) FILTER (WHERE "usedInTraining") FROM public.trajectories WHERE "trajectoryId" <> %s"""

_MAY_POST = "SELECT 1 FROM babylon_rl.remote_jobs"
_OF_THIS_RUN = re.compile(r"tmp\w{8}|[0-9a-f]{5,}")


class Broken(AssertionError):
    """An invariant does not hold; the message has the story of the schedule."""


class Skills(dict[str, Rule]):
    """How well versions of a schedule play; the base trades without a view."""

    def __init__(self, seed: int) -> None:
        super().__init__(base=alternates)
        self._seed = seed

    def __missing__(self, version: str) -> Rule:
        return Random(f"{self._seed}/{version}").choice([reads_news, reads_news, reads_wrongly, hold])


class CountedJudge:
    """The scripted judge, and how many answers it has given in a schedule."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._before, self.seed = judge, 0, 0
        self.faults: Sequence[str] = ()

    def begin(self, seed: int) -> None:
        self._judge.reset(seed=seed)
        self.seed, self._before, self.faults = seed, 0, ()

    def answered(self) -> int:
        return self._before + int(self._judge.stats()["answered"])

    def fail(self, faults: Sequence[str]) -> None:
        """From now on some answers have these faults; without any it is well again."""
        self._before = self.answered()
        self._judge.reset(seed=self.seed, slow_s=SLOW_S, faults={fault: JUDGE_FAULTS[fault] for fault in faults})
        self.faults = faults


@dataclass
class Site:
    """The services of all schedules: judge, training service, model server, and what each kind of trainer needs."""

    judge: CountedJudge
    settings: dict[str, Settings]
    stand_in: StandIn | None = None
    models: Endpoint | None = None
    calls: tuple[dict[str, Any], ...] = ()


@dataclass
class Schedule:
    """One schedule in a database and a state directory of its own."""

    seed: int
    site: Site
    url: str
    home: Path
    trainer: str
    story: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        settings = self.site.settings[self.trainer].model_copy(update={"babylon_rl_home": self.home})
        self.connection = connect(self.url)
        keep_secret(self.connection, bytes(32), START)
        insert(self.connection, "User", [{"id": agent, "updatedAt": START} for agent in AGENTS])
        self.connection.execute(FOREIGN_ROWS)
        insert_rows_of_others(self.connection, AGENTS[0])
        self.connection.commit()
        self.world = World(self.url, settings, self.connection)
        self.now, self.turn = START, 0
        self.windows = [window_of(START - HOUR)]
        self.kept: dict[str, set[str]] = {"trajectories": set(), "calls": set()}
        self.public = PublicTables(self.world)
        self.lost_answers = 0  # of the judge, at most
        self.lives: list[Life] = []
        self.error_of: dict[str, BaseException | None] = {}  # of each actor's last life
        self.in_flight = 0  # an answer that a paused actor may have and has not stored
        self.site.judge.begin(self.seed)
        if self.site.models is not None:
            self.site.models.rules = Skills(self.seed)
        # Drawn with any site, so that a seed alone is the same schedule as among others. The same for all jobs: after a post without an
        # answer the product waits for twice the time that they take.
        job_s, lag_s = self.chance.choice((0.0, 0.125, 0.25)), self.chance.choice((0.0, 0.0625))
        if self.site.stand_in is not None:
            service = self.site.stand_in.service
            service.begin()
            service.job_s, service.lag_s = job_s, lag_s
            service.post_faults, service.job_faults = [], []

    def run(self) -> None:
        """Steps with faults, then everything to its end; raises Broken."""
        try:
            for _ in range(STEPS):
                self._step()
                self.check()
            self.finish()
        except Exception as broken:
            raise Broken("\n".join([*self.story, f"{type(broken).__name__}: {broken}"])) from broken
        finally:
            for life in self.lives:
                if not life.ended:
                    life.end()
            self.connection.close()

    def act(self, *names: str) -> None:
        """Some actors, one after another, without faults."""
        for name in names:
            self._live(name, [])
            self.check()

    def next_hour(self) -> None:
        """The game plays on to the next full hour."""
        self.now = self.now.replace(minute=0) + HOUR
        self.windows.append(window_of(self.now - HOUR))

    # --- steps

    def _step(self) -> None:
        chance = self.chance
        if chance.random() < 0.12:
            hours = chance.choice([-0.5, 0.02, 1, 3, 30])
            self.now = max(START, self.now + hours * HOUR)
            self.counts["clock jumps"] += 1
            self._tell(f"the clock jumps {hours:+g} hours")
        self._let_leases_end()
        name = self._choose()
        drawn = chance.random()
        self._arm(name, alone=drawn < 0.5)
        if drawn < 0.25:
            self._live(name, [])
        elif drawn < 0.5:
            self._live(name, self._faults(name))
        elif drawn < 0.55 and name in KILLABLE and self.trainer == "dry":
            self._kill(name)
        else:
            self._live_beside(name)
        if self.site.judge.faults:
            self.site.judge.fail([])
        if self.site.stand_in is not None:
            self.site.stand_in.service.post_faults, self.site.stand_in.service.job_faults = [], []
        self._let_time_pass()

    def _let_time_pass(self) -> None:
        """A post that was recorded and never sent is made after the longest time of a job, which passes here."""
        posting = rows(self.world, """SELECT "batchId", "iteration" FROM babylon_rl.remote_jobs WHERE "state" = 'posting'""")
        if posting and self.site.stand_in is not None:
            sent = {mark[:2] for job in self.site.stand_in.service.jobs for mark in job.payload.trajectories}
            for batch_id, iteration in set(posting) - sent:
                self.connection.execute(
                    """UPDATE babylon_rl.remote_jobs SET "postedAt" = "postedAt" - interval '3 hours'
                    WHERE "batchId" = %s AND "iteration" = %s""",
                    [batch_id, iteration],
                )
            self.connection.commit()

    def _let_leases_end(self) -> None:
        """Leases that a life left are a dead process's, as others see it; this process, which had them, lives on.

        Of a process of another machine only the lease's age shows that.
        """
        if self.chance.random() < 0.4:
            self.counts["leases that expire"] += self.connection.execute(_EXPIRED_LEASES).rowcount
        else:
            self.connection.execute(_DEAD_LEASES)
        self.connection.commit()

    def _choose(self) -> str:
        if self.chance.random() < 0.6:
            name = LOOP[self.turn % len(LOOP)]
            self.turn += 1
        else:
            names = list(ACTORS)
            name = self.chance.choices(names, [ACTORS[one][1] for one in names])[0]
        if name == "releaser" and self.trainer == "paid":
            name = "gate"  # a service's model goes on from its newest step alone, so that nothing else is deployed there
        if name == "recorder":
            self.next_hour()
        return name

    def _faults(self, name: str) -> list[Fault]:
        return [self._fault(self.chance.choice(KINDS), name)]

    def _fault(self, kind: FaultKind, name: str) -> Fault:
        if name in STAKES and self.chance.random() < 0.5:
            return Fault(kind, 1, self.chance.choice(STAKES[name]))
        return Fault(kind, self._place(name))

    def _place(self, name: str) -> int:
        """A boundary that the actor passes, if it has something to do; early ones as often as late ones."""
        most = PLAYED if name == "gate" and self.trainer == "cpu" else ACTORS[name][2]
        return self.chance.choice([self.chance.randint(1, most), round(most ** self.chance.random())])

    def _scene(self) -> Scene:
        windows = tuple(sorted(set(self.windows)))
        draw, calls = self.chance.getrandbits(32), self.site.calls if self.trainer == "paid" else ()
        serving = self.site.models.serving if self.trainer == "cpu" and self.site.models is not None else None
        settings = self.world.settings
        if "time-out" in self.site.judge.faults:
            settings = settings.model_copy(update={"judge_timeout_seconds": SHORT_LIMIT_S})
        return Scene(settings, self.now, windows, draw, calls, serving)

    def life(self, name: str, faults: Sequence[Fault], *, beside: bool = False) -> Life:
        actor, scene = ACTORS[name][0], self._scene()
        self.lives.append(Life(name, lambda life: actor(life, scene), self.url, list(faults), beside=beside))
        return self.lives[-1]

    def _live(self, name: str, faults: Sequence[Fault]) -> None:
        life = self.life(name, faults)
        life.go_on()
        self._end(life)

    def _live_beside(self, name: str) -> None:
        """The actor pauses at a boundary while another of its kind, or any, runs; then goes on, perhaps to its death."""
        chance = self.chance
        other = name if chance.random() < 0.6 else self._choose()
        stop = self._fault("pauses", name)
        after = [Fault(chance.choice(KINDS), stop.at + chance.randint(1, ACTORS[name][2]))] if chance.random() < 0.3 else []
        first = self.life(name, [stop, *after])
        first.go_on()
        if first.ended:
            return self._end(first)
        self.in_flight = int(name in ("judge", "trainer"))
        self.check()
        # A trainer that stands still for longer than a job may last, between its last look and its post, posts twice, by design.
        if other == "trainer" and any(boundary.startswith(_MAY_POST) for boundary in first.passed[-3:-1]):
            other = "hours"
        # A judge that is silent for longer than its lease is asked twice, by design.
        if chance.random() < 0.3 and not {name, other} & {"judge", "trainer"}:
            self.now += HOUR
            self.counts["slow by an hour"] += 1
        return self.beside(first, other, self._faults(other) if chance.random() < 0.3 else [])

    def beside(self, first: Life, other: str, faults: Sequence[Fault] = ()) -> None:
        """An actor runs beside a life that pauses, which then goes on to its end."""
        second = self.life(other, faults, beside=True)
        self._tell(f"{first.name} pauses at {first.passed[-1]!r} ({len(first.passed)}); {other} runs beside it")
        self.counts["two at once"] += 1
        second.go_on()
        if second.ended:
            self._end(second)
        else:
            self.counts["waits for the other"] += 1
        self.check()
        self.in_flight = int(not second.ended and other in ("judge", "trainer"))
        first.go_on()
        self._end(first)
        if not second.ended:
            self.check()
            self._let_leases_end()
            second.beside, self.in_flight = False, 0
            second.go_on()
            self._end(second)

    def _kill(self, name: str) -> None:
        at = self._place(name)
        gone = killed(ACTORS[name][0], (self._scene(),), self.url, at)
        self.counts["SIGKILL"] += gone
        self.lost_answers += name in ("judge", "trainer")
        self._tell(f"{name}, a process, " + (f"is killed at boundary {at}" if gone else "ends first"))

    def _arm(self, name: str, *, alone: bool) -> None:
        """The services fail too, or are slow. With a short time limit a judge that pauses would lose an answer, so it is ``alone``."""
        if name in ("judge", "trainer") and self.chance.random() < 0.3:
            self.site.judge.fail(self.chance.sample([fault for fault in JUDGE_FAULTS if alone or fault != "time-out"], 2))
            self.counts["judge with faults"] += 1
        if name == "trainer" and self.trainer == "paid" and self.site.stand_in is not None and self.chance.random() < 0.5:
            service = self.site.stand_in.service
            if self.chance.random() < 0.5:
                service.post_faults = [self.chance.choice(POST_FAULTS)]
            else:
                service.job_faults = [self.chance.choice(JOB_FAULTS)]
            self.counts["training service with faults"] += 1

    def _end(self, life: Life) -> None:
        """Look at a life that ended: what it met, what it kept, and whether its error is one that may be."""
        harmed = bool(set(life.met) - {"pauses"}) or isinstance(life.error, psycopg.errors.LockNotAvailable)
        if isinstance(life.error, psycopg.errors.LockNotAvailable):
            self.counts["blocked by the other"] += 1
        self.counts["processes"] += 1
        self.counts["boundaries"] += len(life.passed)
        for kind in life.met:
            self.counts[kind] += kind != "pauses"
        self.lost_answers += harmed and life.name in ("judge", "trainer")
        kept = self.kept["calls" if life.name == "gateway" else "trajectories"]
        kept.update(life.kept)
        error = "" if life.error is None else f", {type(life.error).__name__}: {str(life.error)[:300]}"
        self.error_of[life.name] = life.error
        self._tell(f"{life.name} ends after {len(life.passed)} boundaries{''.join(f', {kind}' for kind in life.met)}{error}")
        if life.error is not None and not isinstance(life.error, BabylonError) and not (harmed and isinstance(life.error, SURVIVED)):
            raise life.error

    def _tell(self, sentence: str) -> None:
        """Names of files hold times, process ids and chance, which another run of the seed does not repeat."""
        here = re.compile(rf"{re.escape(str(self.home))}\S*")
        sentence = here.sub(lambda path: _OF_THIS_RUN.sub("*", path[0].replace(str(self.home), "")), sentence)
        self.story.append(f"{self.now:%d %H:%M} {sentence}")

    # --- invariants

    def check(self) -> None:
        """All that holds after every step."""
        check(self.world)
        self.public.check()
        gone = {one for one in self.kept["trajectories"] if f"trajectories {one}" not in self.public.rows}
        assert not gone, f"recorded trajectories are lost: {sorted(gone)[:5]}"
        assert (half := rows(self.world, _HALF_JUDGED)) == [], f"hours are half judged: {half}"
        assert (unproven := rows(self.world, _UNPROVEN)) == [], f"versions were released that did not pass: {unproven}"
        assert (deployed := rows(self.world, _DEPLOYED))[1:] == [], f"several versions are deployed: {deployed}"
        # An answer that came twice is kept as retired; one with a fault may be, too, and is asked for anew.
        ((kept, twice),) = rows(self.world, _ANSWERS)
        lost = self.site.judge.answered() - kept
        assert lost >= 0 and lost + twice <= self.lost_answers + self.in_flight, (
            f"{lost} answers lost, {twice} paid twice; {self.lost_answers} may be"
        )
        if not self.in_flight:
            self.lost_answers = lost + twice  # each death allows for one, not for one later
        self._check_jobs()
        self._check_gate()

    def _check_gate(self) -> None:
        if self.trainer == "cpu" and self.site.models is not None:
            passed = rows(self.world, """SELECT "version" FROM babylon_rl.releases WHERE "decision" = 'pass'""")
            worse = [version for (version,) in passed if self.site.models.rules[version] is not reads_news]
            assert not worse, f"versions that play no better passed: {worse}"

    def _check_jobs(self) -> None:
        if self.trainer != "paid" or self.site.stand_in is None:
            return
        service = self.site.stand_in.service
        service.trained()
        training = Counter(
            iteration
            for job in service.jobs if job.step is not None or not job.settled
            for iteration in {mark[:2] for mark in job.payload.trajectories}
        )  # fmt: skip
        assert all(number == 1 for number in training.values()), f"an iteration was posted twice: {training}"

    # --- the end

    def finish(self) -> None:
        """Without faults everything ends, and the newest version that passed is played, and what it played is trained too."""
        self._tell("no more faults")
        self._let_leases_end()
        self._train_all()
        self.act("gate", *["releaser"] * (0 if self.trainer == "paid" else 2))
        self.next_hour()
        self.act("gateway", "recorder")
        waits = self._train_all()
        assert (unjudged := rows(self.world, _UNJUDGED)) == [], f"hours are not judged: {unjudged}"
        self.act("gate", "cleanup")
        check(self.world, at_rest=True)
        calls = Counter(one for (one,) in rows(self.world, 'SELECT "callId" FROM babylon_rl.gateway_calls'))
        assert self.kept["calls"] <= set(calls), f"calls are lost: {sorted(self.kept['calls'] - set(calls))[:5]}"
        # Every trajectory was trained, or has a reason why it never will be.
        ready = count_freezable(self.connection, self.world.settings, self.now)
        barred = sum(ready.not_trainable.values()) + (ready.trajectories if waits else 0)
        ((total, used),) = rows(self.world, _TRAINED, OTHERS_TRAJECTORY)
        self.counts["trajectories"] = total
        if self.trainer == "cpu":
            for decision, versions in rows(self.world, 'SELECT "decision", count(*) FROM babylon_rl.releases GROUP BY 1'):
                self.counts[f"{decision} by play"] = versions
        self.counts["trained trajectories"] = used
        ((self.counts["trained trajectories of versions"],),) = rows(self.world, _TRAINED_OF_VERSIONS)
        assert used + barred == total, f"{total} trajectories: {used} trained, {ready}"

    def _train_all(self) -> bool:
        """All calls are written, all hours judged, all that can train is trained; True if some of it waits for more episodes."""
        self.now += 50 * HOUR
        for _ in range(3 * len(self.windows) + 5):
            self.act("writer of calls", "hours", "judge", "freezer", "trainer")
            self.now += timedelta(minutes=40)
            # What a service would not train alone waits for episodes that it can be compared with.
            waits = isinstance(self.error_of["trainer"], NothingToTrain)
            if waits or not self._left():
                break
        assert waits or not self._left(), f"still to do: {self._left()}"
        return waits

    def _left(self) -> str:
        """What is still to do, in words."""
        live = rows(self.world, "SELECT \"batchId\" FROM babylon_rl.batches WHERE \"state\" NOT IN ('completed', 'failed')")
        ready = count_freezable(self.connection, self.world.settings, self.now)
        self.connection.commit()
        return "" if not live and not ready.trajectories else f"batches {live}, {ready}"


def trainer_of(seed: int) -> str:
    """The trainer of a schedule: seven of ten have the dry one, two the paid service, one the CPU trainer."""
    return {7: "paid", 8: "paid", 9: "cpu"}.get(seed % 10, "dry")
