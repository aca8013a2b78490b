"""What goes wrong on which day of the simulated fortnight, and what must hold at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from dagster_postgres.utils import DagsterPostgresException
from psycopg.rows import dict_row
from sqlalchemy.exc import OperationalError

from babylon_rl.errors import DatabaseUnreachable
from babylon_rl.evaluation.gate import FAIL, PASS
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import stop_server, use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl.store.releases import ON_TRIAL, read_rollouts, read_routing
from babylon_rl_tests import oracle
from babylon_rl_tests.e2e.fortnight import ALERT, PLAYED, START, WAITING, Fortnight, Skills, deliver, hold_back
from babylon_rl_tests.e2e.fortnight_location import JUDGE
from babylon_rl_tests.evaluation.endpoint import endpoint
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.serving.live_rows import insert_calls

NOBODY = "http://127.0.0.1:9/v1"
DOWN = (psycopg.OperationalError, DatabaseUnreachable, OperationalError, DagsterPostgresException)
# The second version reads the news wrongly; the sixth is the best, but its endpoint fails while it is on trial. A step of 0.3 or more
# shows in the gate's markets, a smaller one does not.
SKILLS = [0.35, -1.0, 0.4, 0.65, 0.7, 1.0, 0.65, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
CHOSEN: dict[str, Any] = {
    "train_rl_local": True, "training_min_trajectories": 350, "training_min_groups": 2, "training_min_group_size": 5,
    "training_interval_hours": 40.0, "training_daily_min_trajectories": 100, "iterations": 2, "benchmark_markets": 12,
    "confirmation_markets": 24, "auto_promote": True, "rollout_steps": (100.0,), "first_window": "2025-11-01T00:00",
    "judge_model": JUDGE, "judge_settle_hours": 1.0, "judge_timeout_seconds": 1.0, "data_quality_threshold": 0.5,
}  # fmt: skip
COUNTS = 'SELECT count(*), count(*) FILTER (WHERE "usedInTraining") FROM trajectories'
# Days of what goes wrong, from 0.
LATE, OUTAGE, SPENT, RESTART, CRASH, ERRORS = 1, 2, 4, 5, 6, 7


@dataclass(frozen=True)
class Outcome:
    """The story of a simulation, and the facts that must hold."""

    story: list[Any]
    hours: int
    wrong_hours: list[str]
    unscored: int
    trajectories: int
    used: int
    used_twice: int
    marked_otherwise: int
    deployed: str | None
    best: str | None
    by_day: list[tuple[int, int]]
    decisions: dict[str, str]
    skills: dict[str, float]


@contextmanager
def fortnight(directory: Path, base: Path, settings: Settings) -> Iterator[tuple[Fortnight, Cluster, Skills, str]]:
    """A new game with its server, judge and endpoint of models."""
    skills = Skills(SKILLS)
    with use_server(directory) as url, endpoint() as served, judging() as judge:
        served.rules = skills
        database = Database(url, url)
        migrate(database)
        database.prepare_dagster_schema()
        changes = {**CHOSEN, "babylon_rl_home": directory / "home", "local_base_model": str(base), "judge_base_url": judge.url}
        with Fortnight(database, settings.model_copy(update=changes), served.serving).running() as days:
            yield days, Cluster(directory), skills, judge.url


def live(days: Fortnight, cluster: Cluster, judge_url: str, number: int, say: Callable[[str], object] = str) -> list[tuple[int, int]]:
    """Let ``number`` days pass, with what goes wrong on each; trajectories recorded and trained by day."""
    by_day = []
    for day in range(number):
        _morning(days, day)
        for hour in range(24):
            _hour(days, cluster, day, hour, judge_url)
        with days.database.connect() as connection:
            by_day.append(connection.execute(COUNTS).fetchone() or ())
        say(f"day {day + 1} of {number}: {by_day[-1][0]} trajectories, {by_day[-1][1]} of them trained")
    return by_day


def _morning(days: Fortnight, day: int) -> None:
    if day == SPENT:
        days.change(judge_budget_usd=0.00001)
        days.tell("JUDGE_BUDGET_USD is next to nothing: the day's budget is spent at once.")
    elif day == SPENT + 1:
        days.change(judge_budget_usd=None)
        days.tell("The budget is lifted.")
    elif day == CRASH:
        days.crash_at = "training, iteration"
        days.tell("The next training will crash in its first iteration.")
    elif day == ERRORS:
        days.change(rollout_steps=(50.0, 100.0))
        days.tell("From now on versions are rolled out to half of the agents first; the endpoint of the next one fails.")
    elif day == ERRORS + 3:
        days.change(rollout_steps=(100.0,))


def _hour(days: Fortnight, cluster: Cluster, day: int, hour: int, judge_url: str) -> None:
    if (day, hour) == (OUTAGE, PLAYED[1]):
        days.change(judge_base_url=NOBODY)
        days.tell("The judge is down.")
    elif (day, hour) == (OUTAGE, 18):
        days.change(judge_base_url=judge_url)
        days.tell("The judge answers again.")
    plays = hour in PLAYED
    if plays or (day, hour) == (LATE, 15):
        with days.database.connect() as connection:
            if plays:
                window = days.play(connection)
                if (day, hour) == (LATE, PLAYED[1]):
                    days.tell(f"{hold_back(connection, window)} rows of {window} are held back.")
            else:
                days.tell(f"{deliver(connection, days.now)} late rows arrive.")
    if (day, hour) == (RESTART, PLAYED[1]):
        days.tell("The database stops, with everything that Dagster remembers.")
        stop_server(cluster.home)
        with suppress(*DOWN):
            days.pass_hour((1,))
        cluster.start()
        days.tell("The database is back.")
        days.now = days.now.replace(minute=0) - timedelta(hours=1)
    days.pass_hour((8, 42) if plays else (10,) if hour % 4 == 0 else ())
    _fail_on_trial(days, day)


def _fail_on_trial(days: Fortnight, day: int) -> None:
    with days.database.connect() as connection:
        trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
        if trial is not None and day >= ERRORS:
            agents, deployed = [f"agent-{n}" for n in range(20)], read_routing(connection).deployed
            insert_calls(connection, trial.version, days.now, agents, calls=20, failed=10)
            insert_calls(connection, deployed, days.now, [f"other-{agent}" for agent in agents], calls=20)


def judge_outcome(days: Fortnight, skills: Skills, by_day: list[tuple[int, int]]) -> Outcome:
    """Compare what the pipeline holds with the plain reading of the rows, and with the skills that nobody told it."""
    with days.database.connect() as connection:
        wrong, hours = _wrong_hours(connection)
        gone = {one.version for one in read_rollouts(connection) if one.state == "rolled_back"}
        decisions = dict(connection.execute('SELECT "version", "decision" FROM babylon_rl.benchmark_reports ORDER BY 1').fetchall())
        good = [version for version, decision in decisions.items() if decision == PASS and version not in gone]
        return Outcome(
            days.story, hours, wrong,
            _one(connection, """SELECT count(*) FROM babylon_rl.windows WHERE "ready" AND "state" <> 'scored'"""),
            _one(connection, "SELECT count(*) FROM trajectories"),
            _one(connection, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"'),
            _one(connection, """SELECT count(*) FROM (SELECT FROM babylon_rl.batch_items WHERE "live" OR "consumed"
                GROUP BY "trajectoryId" HAVING count(*) > 1) twice"""),
            _one(connection, """SELECT count(*) FROM (SELECT "trajectoryId" FROM trajectories WHERE "usedInTraining") m
                FULL JOIN (SELECT "trajectoryId" FROM babylon_rl.batch_items WHERE "consumed") c USING ("trajectoryId")
                WHERE m IS NULL OR c IS NULL"""),
            read_routing(connection).deployed, max(good, key=lambda version: skills.skills[version], default=None), by_day, decisions,
            dict(skills.skills),
        )  # fmt: skip


def unmet(outcome: Outcome) -> list[str]:
    """What does not hold at the end of all days, in sentences."""
    days = len(outcome.by_day)

    def told(day: int, *parts: str, until: int = 0) -> bool:
        """True when a sentence of those days has all the parts."""
        first, end = START + timedelta(days=day), START + timedelta(days=max(day, until) + 1)
        return any(first <= moment < end and all(part in sentence for part in parts) for moment, sentence in outcome.story)

    waiting = [sentence for _, sentence in outcome.story if WAITING.format("") in sentence]
    alerts = [sentence for _, sentence in outcome.story if sentence.startswith(ALERT)]
    worst = min(outcome.skills, key=lambda version: outcome.skills[version], default="")
    # By the first day after which it can be asked for: what must hold then.
    held = [
        (0, "Every hour is what the plain reading of its rows says.", not outcome.wrong_hours),
        (0, "Every ready hour is scored.", outcome.unscored == 0),
        (0, "No trajectory is in two batches, and each is marked as its batch says.", outcome.used_twice + outcome.marked_otherwise == 0),
        (0, "The deployed version is the best that passed.", outcome.deployed == outcome.best is not None),
        (0, "No alert comes twice.", len(alerts) == len(set(alerts))),
        (LATE, "Late rows arrived.", told(LATE, "late rows arrive")),
        (OUTAGE, "Hours waited for the judge that was down.", told(OUTAGE, WAITING.format(1))),
        (OUTAGE, "No hour waits for its judge at the end.", bool(waiting) and waiting[-1] == WAITING.format(0)),
        (OUTAGE, f"{worst}, which reads the news wrongly, was refused.", outcome.decisions.get(worst) == FAIL),
        (SPENT, "Hours waited for the next day's budget, with an alert.", told(SPENT, f"{ALERT}judge_budget_spent")),
        (RESTART, "The database was restarted.", told(RESTART, "The database is back.")),
        (CRASH, "The training that crashed was told of.", told(CRASH, "is training")),
        (CRASH, "It was completed within a day.", told(CRASH, "is completed", until=CRASH + 1)),
        (ERRORS + 3, "A version on trial was rolled back, with an alert.", told(ERRORS, f"{ALERT}guard_tripped", until=ERRORS + 3)),
    ]  # fmt: skip
    return [sentence for day, sentence, holds in held if days > day and not holds]


def _one(connection: Connection, query: str) -> Any:
    return (connection.execute(query).fetchone() or (None,))[0]


def _wrong_hours(connection: psycopg.Connection[Any]) -> tuple[list[str], int]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute("SELECT * FROM trajectories").fetchall()
        logs: dict[str, list[Any]] = {}
        for log in cursor.execute("SELECT * FROM llm_call_logs").fetchall():
            logs.setdefault(log["trajectoryId"], []).append(log)
        stored = cursor.execute('SELECT * FROM babylon_rl.episodes ORDER BY "window", "agentId"').fetchall()
    by_hour: dict[str, list[Any]] = {}
    for row in rows:
        by_hour.setdefault(oracle.window_of(row), []).append(row)
    answers = {}
    for own in by_hour.values():
        answers |= oracle.read_hours(own, [log for row in own for log in logs.get(row["trajectoryId"], [])])
    expected = {
        (window, agent): (
            found["window_pnl"],
            found["steps"],
            tuple(found["trajectory_ids"]),
            found["usable"],
            found["trainable_sequences"],
        )
        for window, hour in answers.items()
        for agent, found in hour.episodes.items()
    }
    held = {
        (row["window"], row["agentId"]): (
            row["windowPnl"], row["steps"], tuple(row["trajectoryIds"]), row["usable"], row["trainableSequences"],
        )
        for row in stored
    }  # fmt: skip
    return sorted({window for window, agent in expected | held if expected.get((window, agent)) != held.get((window, agent))}), len(answers)
