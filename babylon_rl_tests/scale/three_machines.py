"""Machines that share a database, a broker and S3, and no disk: what each makes, another goes on with.

They are set up by the commands of docs/howto/several-machines.md.
"""

import contextlib
import hashlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

from babylon_rl.files.file_sets import content_folder
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, decode_manifest
from babylon_rl.serving.dagster_client import QUEUE_TAG
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now
from babylon_rl_tests.e2e.host import Host, post, version_of_answer
from babylon_rl_tests.e2e.test_dev_alone import DECIDED, SMALL
from babylon_rl_tests.object_store import SECRET, ObjectStore, running_store
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.scale.machines import PASSWORD, Site, in_python, inherited, site
from babylon_rl_tests.scale.results import BUSY_S, Row, bound_s, commands, settings_named
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.tiny_model import make_base

FIRST_HOUR = "2025-11-15T10:00"
HOURS = 3
CUT_S = 60
BASE, BASE_WEIGHTS = "base", "/model.safetensors"
TRAINING = "api/admin/training"
MIGRATE, DEV = ["babylon-rl", "migrate"], ["babylon-rl", "dev"]
# Hours are made as they end.
PROMPT = SMALL | {"AUTOMATION_STATUS": "running", "FIRST_WINDOW": FIRST_HOUR, "MAX_CONCURRENT_RUNS": "6"}
# Nobody starts a training by itself, or as soon as there is something to train on.
ON_DEMAND = {"TRAINING_MIN_TRAJECTORIES": "1000000", "TRAINING_MIN_GROUPS": "1000000"}
EAGER = {"TRAINING_MIN_TRAJECTORIES": "60"}
WAITS_TO_UPLOAD = """
    SELECT 1 FROM babylon_rl.batches b JOIN public.training_batches p USING ("batchId")
    WHERE b."state" = 'uploading' AND p.error LIKE '%%could not be uploaded%%'
"""
REGISTERED = "SELECT version FROM public.trained_models"


@contextlib.contextmanager
def sharing_s3(directory: Path, database: Database, **settings: str) -> Iterator[tuple[Site, ObjectStore]]:
    """The first machine, with some hours of a game and an object store; no secret is in a log at the end."""
    directory.mkdir()
    # Both as the how-to has them; `site` gives the second a port of its own.
    assert MIGRATE in commands() and DEV in commands()
    where = inherited() | {"DATABASE_URL": database.url, "BABYLON_RL_HOME": str(directory / "dev")}
    subprocess.run(in_python(MIGRATE), cwd=ROOT, env=where, check=True, stdout=subprocess.DEVNULL)
    with database.connect() as connection:
        spawn(connection, SpawnRequest(agents=5, model_agents=0, windows=HOURS, seed=4, start=FIRST_HOUR), utc_now(), None)
    with running_store() as store:
        storage = {"MODEL_STORAGE_URL": store.bucket(), "COMPUTE_LOGS_URL": store.bucket()}
        chosen = PROMPT | settings | {"LOCAL_BASE_MODEL": str(make_base(directory / BASE))} | store.variables | storage
        with site(directory, database.url, ScriptedJudge(), apart=True, **chosen) as (made, _):
            assert set(settings_named()) <= set(made.environment), settings_named()
            yield made, store
            for log in directory.glob("*.log"):
                assert SECRET not in log.read_text() and PASSWORD not in log.read_text(), log


class Line:
    """A machine's line to S3, cut by a request that it carries: the first ``method`` of a file ``name``."""

    def __init__(self, store: ObjectStore, method: str, name: str) -> None:
        self._method, self._name = method, name
        self.proxy = Proxy(f"http://s3@{store.address.removeprefix('http://')}/")
        self.armed, self.was_cut = False, threading.Event()
        store.on_request = self._look_at

    @property
    def address(self) -> str:
        """Where the machine finds S3."""
        return f"http://{self.proxy.url.partition('@')[2]}"

    def _look_at(self, environ: dict[str, Any]) -> None:
        if self.armed and environ["REQUEST_METHOD"] == self._method and environ["PATH_INFO"].endswith(self._name):
            self.armed = False
            self.proxy.cut(away=True)
            self.was_cut.set()

    @contextlib.contextmanager
    def cut_in_the_middle(self, made: Site) -> Iterator[None]:
        """Wait until the line is cut; it is whole again after the block, CUT_S later."""
        self.armed = True
        made.wait(self.was_cut.is_set)
        cut_s = time.monotonic()
        yield
        time.sleep(max(0.0, CUT_S - (time.monotonic() - cut_s)))
        self.proxy.away = False


def three_machines(directory: Path, database: Database) -> Row:
    """A training is started by C, done by A, whose S3 is away twice and which is lost afterwards, decided on by B, served by C."""
    with sharing_s3(directory, database, **ON_DEMAND) as (made, store):
        line = Line(store, "PUT", WEIGHTS)
        began_s = time.monotonic()
        with line.proxy:
            trainer = made.worker("A", "hours", "trainer", AWS_ENDPOINT_URL=line.address).ready()
            made.worker("B", "evidence").ready()
            made.wait(lambda: made.query("SELECT count(*) FROM babylon_rl.group_scores") == [(HOURS,)])
            assert made.dev is not None
            variables = {**made.environment, "DAGSTER_URL": made.dev.url(), "OPENAI_API_KEY": ""}
            server = Host(directory / "C", variables)
            with server.serves("admin") as admin:
                started, _ = post(f"{admin}/{TRAINING}/trigger", {"force": True})
            assert (started["runId"],) in made.query("SELECT run_id FROM babylon_dagster.runs WHERE pipeline_name = 'train'"), started
            waited_s = trained_without_s3(made, store, line)
        # The base was on its disk, too: the others fetch it.
        trainer.kill()
        rmtree(directory / "A")
        rmtree(directory / BASE)
        store.downloads.clear()
        ((batch, state, trajectories, version, decision),) = made.wait(lambda: made.query(DECIDED))
        assert (batch, state) == (started["jobId"], "completed") and trajectories > 0 and decision in ("inconclusive", "fail")
        assert store.downloaded(WEIGHTS) == store.downloaded(BASE_WEIGHTS) == 1 and not (directory / "dev" / "checkpoints").exists()
        decided_s = time.monotonic() - began_s
        with server.serves("admin") as admin:
            deployed, _ = post(f"{admin}/{TRAINING}/deploy", {"modelVersion": version, "strategy": "immediate"})
            assert deployed["success"], deployed
        with (
            server.serves("model", "base") as model,
            Host(server.home, variables | {"LOCAL_ENDPOINT": model}).serves("gateway") as gateway,
        ):
            assert version_of_answer(gateway) == version
        assert store.downloaded(WEIGHTS) == store.downloaded(BASE_WEIGHTS) == 2
    remark = f"A trains, S3 away for {CUT_S} s before it and in the middle of its upload, A lost; B decides; C serves {version}"
    return Row("three machines", HOURS, decided_s, waited_s=waited_s, bound_s=bound_s("S3 is away"), remark=remark)


def trained_without_s3(made: Site, store: ObjectStore, line: Line) -> float:
    """Cut a training's S3 before it begins and in its upload; the seconds from S3's return to the version."""
    line.proxy.cut(away=True)
    time.sleep(CUT_S)
    assert made.query(REGISTERED) == []
    line.proxy.away = False
    with line.cut_in_the_middle(made):
        made.wait(lambda: made.query(WAITS_TO_UPLOAD))
        assert [step for (step,) in made.query("SELECT iteration FROM babylon_rl.training_steps")] == [1]
    # No row without its files.
    assert made.query(REGISTERED) == [] and not store.files().exists(f"{bucket(made, 'MODEL_STORAGE_URL')}/v1.0.0/{MANIFEST}")
    back_s = time.monotonic()
    ((version,),) = made.wait(lambda: made.query(REGISTERED))
    waited_s = time.monotonic() - back_s
    check_files(made, store, version)
    ((run,),) = made.wait(
        lambda: made.query("SELECT run_id FROM babylon_dagster.runs WHERE pipeline_name = 'train' AND status = 'SUCCESS'")
    )
    check_output(made, store, run)
    assert made.query("SELECT iteration FROM babylon_rl.training_steps") == [(1,)] and made.query(REGISTERED) == [(version,)]
    assert waited_s <= bound_s("S3 is away") + BUSY_S, waited_s
    return waited_s


def bucket(made: Site, setting: str) -> str:
    """The folder at S3 that a setting names."""
    return made.environment[setting].removeprefix("s3://")


def check_files(made: Site, store: ObjectStore, version: str) -> None:
    """A registered version is at S3, whole, and nothing else is but its base."""
    folder, files = bucket(made, "MODEL_STORAGE_URL"), store.files()
    content = files.cat_file(f"{folder}/{version}/{MANIFEST}")
    manifest, place = decode_manifest(content, version), content_folder(version, hashlib.sha256(content).hexdigest())
    found = {name: hashlib.sha256(files.cat_file(f"{folder}/{place}/{name}")).hexdigest() for name in manifest.files}
    assert manifest.version == version and found == manifest.files and WEIGHTS in found
    stored = {path.removeprefix(f"{folder}/") for path in files.find(folder)}
    whole = {f"{version}/{MANIFEST}", *(f"{place}/{name}" for name in (MANIFEST, *found))}
    assert {name for name in stored if not name.startswith("bases/")} == whole, stored


def check_output(made: Site, store: ObjectStore, run: str) -> None:
    """The output of a run that a worker executed is at S3."""
    made.wait(lambda: store.files().find(f"{bucket(made, 'COMPUTE_LOGS_URL')}/storage/{run}"), 30)


def alone(directory: Path, database: Database) -> Row:
    """Nobody touches anything: A judges, B trains, C decides, each by its command in the how-to."""
    with sharing_s3(directory, database, **EAGER) as (made, store):
        began_s = time.monotonic()
        workers = [command for command in commands() if command[:2] == ["babylon-rl", "worker"]]
        for name, command in zip("ABC", workers, strict=True):
            made.machine(name, command).ready()
        ((_, state, trajectories, version, decision),) = made.wait(lambda: made.query(DECIDED))
        assert state == "completed" and trajectories > 0 and decision in ("inconclusive", "fail")
        made.wait(lambda: made.query("SELECT 1 FROM babylon_dagster.event_logs WHERE asset_key = %s", '["released_model"]'))
        made.wait(made.at_rest)
        queues = made.query("SELECT DISTINCT value FROM babylon_dagster.run_tags WHERE key = %s", QUEUE_TAG)
        assert {queue for (queue,) in queues} >= {"hours", "trainer", "evidence"}, queues
        assert set(made.runs()) == {"SUCCESS"}, made.runs()
        for (run,) in made.query("SELECT run_id FROM babylon_dagster.runs"):
            check_output(made, store, run)
    return Row("alone", HOURS, time.monotonic() - began_s, remark=f"A judges, B trains, C finds {version} {decision}")
