"""Those who act on a game's database: each one call of the product's own functions, in a life (lives.py) that may end at any boundary.

An actor keeps in ``life.kept`` the ids of rows that the product has promised to keep.
"""

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from babylon_rl.automation.cleanup import clean_up
from babylon_rl.errors import DatabaseUnreachable, ModelUnavailable
from babylon_rl.evaluation.benchmark import evaluate_batch, record_release
from babylon_rl.evaluation.gate import FAIL, INCONCLUSIVE, PASS
from babylon_rl.judge.scoring import score_windows
from babylon_rl.models.server_process import Serving
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.recorder.writer import BackgroundWriter
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.call_writer import CallWriter
from babylon_rl.serving.promotion import advance, promote
from babylon_rl.serving.releases import deploy, pause, resume, rollback
from babylon_rl.serving.routing import route
from babylon_rl.serving.spool import Spool, spool_directory
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import read_report, undecided_batches, write_report
from babylon_rl.store.observation import trajectory_versions
from babylon_rl.store.registry import model_of_batch
from babylon_rl.store.releases import ON_TRIAL, ReleaseAuthor, RoutingTable, read_rollouts, read_routing
from babylon_rl.training.backends.protocol import Trainer
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import cancel_batch, fail_stuck, pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import drop_before_judging, freeze
from babylon_rl.types import BenchmarkReport
from babylon_rl.windows import HOUR, is_complete, next_window, window_start
from babylon_rl_tests.faults.lives import Life, LifeDatabase
from babylon_rl_tests.scored import note_changes

AGENTS = tuple(f"agent-{number}" for number in range(3))
ROWS = 2  # trajectories of an agent in an hour
MOST = 2 * len(AGENTS) * ROWS  # of a batch: two hours
PERSON = "a person"
TIMES = Times(
    timedelta(seconds=4),
    timedelta(hours=1),
    poll_s=0.01,
    longest_poll_s=0.02,
    list_lag_s=1.0,
    timeout_s=2.0,
    first_job=timedelta(seconds=1),
)
WORDS = ("buy", "sell", "hold")


@dataclass(frozen=True)
class Scene:
    """What an actor needs: ``windows`` are the hours that were played, ``calls`` served answers to record, ``draw`` chooses for it.

    ``serving`` serves versions for the gate; None where they cannot be played.
    """

    settings: Settings
    now: datetime
    windows: tuple[str, ...]
    draw: int
    calls: tuple[dict[str, Any], ...] = ()
    serving: Serving | None = None

    @property
    def complete(self) -> list[str]:
        return [window for window in self.windows if is_complete(window, self.now)]


Actor = Callable[[Life, Scene], None]


def record(life: Life, scene: Scene, window: str | None = None) -> None:
    """Agents play an hour (the newest, or a given one, late), and their trajectories are recorded."""
    window = scene.windows[-1] if window is None else window
    chance, numbers = Random(scene.draw), itertools.count(scene.draw * 10_000)
    writer = BackgroundWriter(lambda: life.connect(autocommit=True), room=1000, patience_s=0.1)
    moment = window_start(window) + timedelta(minutes=5)
    table = read_routing(life.connect(autocommit=True))
    recorder = TrajectoryRecorder(writer.put, lambda: str(10**17 + next(numbers)), lambda: moment)
    try:
        for agent, row in itertools.product(AGENTS, range(ROWS)):
            begun = recorder.start_trajectory(agent, window=window)
            pnl = chance.uniform(-50.0, 50.0)
            recorder.start_step(begun, balance=1000.0, pnl=0.0, open_positions=0)
            call = _call(scene, chance, f"{window} {agent} {row}")
            recorder.llm_call(begun, **call, model_version=_version(table, scene, agent))
            moment += timedelta(seconds=20)
            recorder.complete_step(begun, "TRADING_DECISION", {"side": "YES"}, success=True, reward=pnl)
            recorder.end_trajectory(begun, balance=1000.0 + pnl, pnl=pnl)
            # One transaction for each, as how many share one hangs on the threads' speed.
            if not _flushed(life, writer):
                return
            life.kept.append(begun)
    finally:
        writer.close()


def _flushed(life: Life, writer: BackgroundWriter) -> bool:
    """Wait until all is written; False if the process has died over it."""
    while not life.dead:
        with suppress(DatabaseUnreachable):  # it is tried again
            writer.flush(0.02)
            return True
    return False


def _call(scene: Scene, chance: Random, said: str) -> dict[str, Any]:
    if scene.calls:
        return dict(chance.choice(scene.calls))
    messages = [{"role": "system", "content": "You trade."}, {"role": "user", "content": f"What now, {said}?"}]
    answer = f'{{"action": "{chance.choice(WORDS)}"}}'
    return {"model": "base", "messages": messages, "response": answer, "temperature": 0.7, "max_tokens": 9}


def _version(table: RoutingTable, scene: Scene, agent: str) -> str | None:
    """The version that the gateway has answer an agent; None for the base."""
    try:
        return route(table, scene.settings, None, agent).version
    except ModelUnavailable:
        return None


def record_late(life: Life, scene: Scene) -> None:
    """Rows of an earlier hour arrive."""
    record(life, scene, Random(scene.draw).choice(scene.windows))


def call_gateway(life: Life, scene: Scene) -> None:
    """Calls of agents: routed, and recorded in the spool."""
    connection, log = life.connect(autocommit=True), Spool(spool_directory(scene.settings))
    for number, agent in enumerate(AGENTS):
        version = _version(read_routing(connection), scene, agent)
        moment = round((scene.now - datetime(1970, 1, 1)).total_seconds() * 1000)
        answer = b'{"model": "m", "choices": [{"index": 0, "message": {"content": "hold"}, "finish_reason": "stop"}]}'
        entry = CallEntry(
            f"call-{scene.draw}-{number}", "request", moment, agent, None, None, None, "action", None, [], version, version, "deployed", "",
            "m", None, 200, 5.0, None, 3, 1, b'{"model": "m", "messages": [{"role": "user", "content": "?"}]}', answer,
        )  # fmt: skip
        life.reach("the gateway answers")
        if log.record(entry):
            life.kept.append(entry.call_id)
    log.close()


def write_calls(life: Life, scene: Scene) -> None:
    """The writer beside the gateway empties the spool."""
    closing = threading.Event()
    closing.set()
    Spool(spool_directory(scene.settings))  # makes the directory, as the gateway does
    CallWriter(scene.settings, closing).run(LifeDatabase(life))


def observe(life: Life, scene: Scene) -> None:
    """Versions of the hours' rows, as the sensors read them."""
    trajectory_versions(life.connect(), scene.windows[0], next_window(scene.windows[-1]))


def read_hours(life: Life, scene: Scene) -> None:
    """Hours are read into episodes, their markets into outcomes, and changes are noted."""
    if scene.complete:
        with life.connect() as connection:
            note_changes(connection, scene.complete, scene.settings, scene.now)


def judge(life: Life, scene: Scene) -> None:
    """Hours without scores are judged, one by one, so that requests come in one order."""
    connection = life.connect(autocommit=True)
    for window in scene.complete:
        drop_before_judging(connection, [window], scene.settings, scene.now)
        score_windows(connection, [window], scene.settings, scene.now)


def freeze_batch(life: Life, scene: Scene) -> None:
    """The next batch is frozen."""
    freeze(life.connect(), scene.settings, scene.now, max_trajectories=MOST)


def train(life: Life, scene: Scene) -> None:
    """The oldest batch that waits is judged and trained."""
    connection = life.connect()
    for batch in pending_batches(connection)[:1]:
        trainer: Trainer | None = None
        if scene.settings.serverless_base_url is not None:
            trainer = ServerlessTrainer(scene.settings, TIMES, life.reach)
        prepare_batch(connection, batch.batch_id, scene.settings, scene.now)
        train_batch(connection, batch.batch_id, scene.settings, scene.now, trainer)


def decide(life: Life, scene: Scene) -> None:
    """Trained versions get a report, and the decision and candidate that follow from it. A report is drawn where no version can play."""
    connection = life.connect()
    for batch_id in undecided_batches(connection, scene.now):
        if scene.serving is not None:
            evaluate_batch(connection, batch_id, scene.settings, lambda _: None, clock=lambda: scene.now, serving=scene.serving)
        elif read_report(connection, batch_id) is None:
            model = model_of_batch(connection, batch_id)
            assert model is not None
            connection.commit()
            write_report(connection, _report(batch_id, model.version, scene.now))
        decided = record_release(connection, batch_id, scene.now)
        promote(connection, decided.version, decided.decision, scene.settings, lambda _: None, clock=lambda: scene.now)


def _report(batch_id: str, version: str, now: datetime) -> BenchmarkReport:
    """The same of a batch whoever writes it, as of the gate's markets."""
    decision = Random(f"{batch_id}/{version}").choice([PASS, PASS, FAIL, INCONCLUSIVE])
    row = {"model": version, "role": "candidate", "pnl": 1.0, "accuracy": 0.5, "markets": 24, "low": 0.0, "high": 2.0, "improvement": 1.0}
    return BenchmarkReport(
        batch_id=batch_id, version=version, reference=None, decision=decision, reason="drawn", markets=24, min_improvement=0.0, rows=[row],
        table_markdown="", data_version="1", plot_path=None, created_at=now,
    )  # fmt: skip


def release(life: Life, scene: Scene) -> None:
    """A person deploys the candidate, pauses, resumes or rolls back; or automation looks at the version on trial."""
    connection, chance = life.connect(), Random(scene.draw)
    author = ReleaseAuthor(PERSON, "as they like", scene.now)
    candidate = next(iter(read_rollouts(connection, ("candidate",))), None)
    trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
    connection.commit()
    if candidate is not None and chance.random() < 0.7:
        deploy(connection, candidate.version, scene.settings, author, strategy="immediate" if chance.random() < 0.6 else "gradual")
    elif trial is not None and chance.random() < 0.6:
        chance.choice([pause, resume])(connection, author)
    elif trial is not None:
        deploy(connection, trial.version, scene.settings, author, percentage=100.0)
    elif chance.random() < 0.4:
        rollback(connection, scene.settings, author)
    else:
        advance(connection, scene.settings, scene.now)


def clean(life: Life, scene: Scene) -> None:
    """Cleanup of old checkpoints, files and rows."""
    for part in clean_up(life.connect(autocommit=True), scene.settings, scene.now):
        assert not part.refused, part.refused


def give_up(life: Life, scene: Scene) -> None:
    """A person cancels the oldest batch, or the sensor gives up batches without a sign of life."""
    connection, chance = life.connect(), Random(scene.draw)
    if chance.random() < 0.5:
        for batch in pending_batches(connection)[:1]:
            cancel_batch(connection, batch.batch_id, "enough", scene.now)
    else:
        fail_stuck(connection, scene.now + 8 * 24 * HOUR)


def take_number(life: Life, scene: Scene) -> None:
    """Another producer registers a version under the next number."""
    connection = life.connect()
    number = connection.value("SELECT max(split_part(version, '.', 3)::int) FROM trained_models")
    version = f"v0.9.{int(number or 0) + 1}"
    connection.execute(
        """INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", status, "updatedAt")
        VALUES (%s, %s, %s, 'x', 'elsewhere', 'ready', %s) ON CONFLICT ("modelId") DO NOTHING""",
        [f"other-{scene.draw}", f"babylon-agent-{version}", version, scene.now],
    )
    connection.commit()
