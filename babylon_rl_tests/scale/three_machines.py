"""Machines that share a database, a broker and S3, and no disk: what each makes, another goes on with."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

from babylon_rl.automation.run_handover import QUEUE_TAG
from babylon_rl.judge.scripted.judge import ScriptedJudge
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.checkpoints import WEIGHTS
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now
from babylon_rl_tests.e2e.host import Host, post, version_of_answer
from babylon_rl_tests.e2e.test_dev_alone import DECIDED, SMALL
from babylon_rl_tests.object_store import SECRET, ObjectStore, running_store
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.scale.machines import PASSWORD, Site, site
from babylon_rl_tests.scale.scenarios import Row
from babylon_rl_tests.tiny_model import make_base

FIRST_HOUR = "2025-11-15T10:00"
HOURS = 3
CUT_S = 60
TRAINING = "api/admin/training"
# Hours are made as they end.
PROMPT = SMALL | {"FIRST_WINDOW": FIRST_HOUR, "OUTCOME_DELAY_MINUTES": "5"}
# Nobody starts a training by itself, or as soon as there is something to train on.
ON_DEMAND = {"TRAINING_MIN_TRAJECTORIES": "1000000", "TRAINING_DAILY_MIN_TRAJECTORIES": "1000000"}
EAGER = {"TRAINING_MIN_TRAJECTORIES": "60"}


@contextlib.contextmanager
def sharing_s3(directory: Path, database: Database, **settings: str) -> Iterator[tuple[Site, ObjectStore]]:
    """The first machine, with some hours of a game and an object store; no secret is in a log at the end."""
    directory.mkdir()
    with database.connect() as connection:
        spawn(connection, SpawnRequest(agents=5, model_agents=0, windows=HOURS, seed=4, start=FIRST_HOUR), utc_now(), None)
    with running_store() as store:
        storage = {"MODEL_STORAGE_URL": store.bucket(), "COMPUTE_LOGS_URL": store.bucket()}
        chosen = PROMPT | settings | {"LOCAL_BASE_MODEL": str(make_base(directory / "base"))} | store.variables | storage
        with site(directory, database.url, ScriptedJudge(), apart=True, **chosen) as (made, _):
            yield made, store
            for log in directory.glob("*.log"):
                assert SECRET not in log.read_text() and PASSWORD not in log.read_text(), log


def three_machines(directory: Path, database: Database) -> Row:
    """A training is started by C, done by A, whose S3 is away for a minute and which is lost afterwards, decided on by B, served by C."""
    with (
        sharing_s3(directory, database, **ON_DEMAND) as (made, store),
        Proxy(f"http://s3@{store.address.removeprefix('http://')}/") as line,
    ):
        began_s = time.monotonic()
        cut = f"http://{line.url.partition('@')[2]}"
        trainer = made.worker("A", "hours", "judge", "trainer", AWS_ENDPOINT_URL=cut).ready()
        made.worker("B", "evidence").ready()
        made.wait(lambda: made.query("SELECT count(*) FROM babylon_rl.group_scores") == [(HOURS,)])
        assert made.dev is not None
        variables = {**made.environment, "DAGSTER_URL": made.dev.url(), "OPENAI_API_KEY": ""}
        server = Host(directory / "C", variables)
        with server.serves("admin") as admin:
            started, _ = post(f"{admin}/{TRAINING}/trigger", {"force": True})
        assert (started["runId"],) in made.query("SELECT run_id FROM babylon_dagster.runs WHERE pipeline_name = 'train'"), started
        line.cut(away=True)
        time.sleep(CUT_S)
        assert made.query("SELECT 1 FROM public.trained_models") == []  # no row without its files
        line.away = False
        made.wait(lambda: made.query("SELECT 1 FROM babylon_dagster.runs WHERE pipeline_name = 'train' AND status = 'SUCCESS'"))
        trainer.kill()
        rmtree(directory / "A")
        store.downloads.clear()
        ((batch, state, trajectories, version, decision),) = made.wait(lambda: made.query(DECIDED))
        assert (batch, state) == (started["jobId"], "completed") and trajectories > 0 and decision in ("inconclusive", "fail")
        assert store.downloaded(WEIGHTS) == 1 and not (directory / "dev" / "checkpoints").exists()
        decided_s = time.monotonic() - began_s
        with server.serves("admin") as admin:
            deployed, _ = post(f"{admin}/{TRAINING}/deploy", {"modelVersion": version, "strategy": "immediate"})
            assert deployed["success"], deployed
        with (
            server.serves("model", "base") as model,
            Host(server.home, variables | {"LOCAL_ENDPOINT": model}).serves("gateway") as gateway,
        ):
            assert version_of_answer(gateway) == version
    return Row("three machines", HOURS, decided_s, 0, f"A trains, S3 away for {CUT_S} s, A lost; B decides; C serves {version}")


def alone(directory: Path, database: Database) -> Row:
    """Nobody touches anything: A judges, B trains, C decides."""
    with sharing_s3(directory, database, **EAGER) as (made, _):
        began_s = time.monotonic()
        for name, queues in {"A": ("hours", "judge"), "B": ("trainer",), "C": ("evidence",)}.items():
            made.worker(name, *queues).ready()
        ((_, state, trajectories, version, decision),) = made.wait(lambda: made.query(DECIDED))
        assert state == "completed" and trajectories > 0 and decision in ("inconclusive", "fail")
        made.wait(lambda: made.query("SELECT 1 FROM babylon_dagster.event_logs WHERE asset_key = %s", '["released_model"]'))
        made.wait(made.at_rest)
        queues = made.query("SELECT DISTINCT value FROM babylon_dagster.run_tags WHERE key = %s", QUEUE_TAG)
        assert {queue for (queue,) in queues} >= {"hours", "trainer", "evidence"}, queues
        assert set(made.runs()) == {"SUCCESS"}, made.runs()
    return Row("alone", HOURS, time.monotonic() - began_s, 0, f"A judges, B trains, C finds {version} {decision}")
