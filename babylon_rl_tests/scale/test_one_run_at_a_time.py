"""A worker executes one run at a time and holds no other's message, though the next run's process is up already."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis as Client

from babylon_rl.automation.celery_runs import worker_app
from babylon_rl.automation.run_handover import HOURS
from babylon_rl.settings import Settings
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.scale.machines import Redis, wait_for
from babylon_rl_tests.store.servers import ROOT

# A worker with a task that waits for a file and, as a run that is claimed, is executed once; its notes are "worker process event task".
_WORKER = """
import os, sys, time
from pathlib import Path
from celery import shared_task
from babylon_rl.automation.celery_runs import run_worker
from babylon_rl.settings import load_settings

@shared_task(name="wait")
def wait(directory, task):
    def note(event):
        with (Path(directory) / "notes").open("a") as notes:
            print(sys.argv[1], os.getpid(), event, task, file=notes)
    try:
        (Path(directory) / f"{task}.claim").touch(exist_ok=False)
    except FileExistsError:
        note("dropped")
        return
    note("began")
    while not (Path(directory) / task).exists():
        time.sleep(0.02)
    note("ended")

sys.exit(run_worker(load_settings(), ("hours",), 1, sys.argv[1]))
"""


@contextmanager
def worker(name: str, broker: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that takes the tasks of a broker; killed at the end if it runs."""
    environment = os.environ | {"CELERY_BROKER_URL": broker, "BABYLON_RL_HOME": str(directory / name)}
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", _WORKER, name], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.skipif(shutil.which(Redis.program) is None, reason=Redis.missing())
def test_a_worker_that_loses_the_broker_goes_on_with_its_run_and_leaves_other_runs_to_idle_workers(settings: Settings, tmp_path: Path):
    def notes() -> list[list[str]]:
        lines = (tmp_path / "notes").read_text().splitlines() if (tmp_path / "notes").exists() else []
        return [line.split() for line in lines]

    def seen(*events: str) -> None:
        logs = tmp_path.glob("*.log")
        wait_for(lambda: {f"{name} {event} {task}" for name, _, event, task in notes()} >= set(events), 60, lambda: str(notes()), *logs)

    redis = Redis(tmp_path)
    try:
        app = worker_app(settings.model_copy(update={"celery_broker_url": SecretStr(redis.url)}))
        with Client.from_url(redis.url) as broker, worker("A", redis.url, tmp_path) as first:
            for task in ("first", "second", "third"):
                app.send_task("wait", [str(tmp_path), task], queue=HOURS)
            seen("A began first")
            assert broker.llen(HOURS) == 2
            for kind in ("normal", "pubsub"):
                broker.client_kill_filter(_type=kind, skipme=True)
            # The worker is back, and has returned the message of its run.
            wait_for(lambda: broker.llen(HOURS) == 3 and broker.pubsub_numpat() > 0, 60, lambda: "it does not return", tmp_path / "A.log")
            with worker("B", redis.url, tmp_path) as second:
                seen("B dropped first", "B began second")
                assert broker.llen(HOURS) == 1
                (tmp_path / "second").touch()
                seen("B ended second", "B began third")
                for task in ("first", "third"):
                    (tmp_path / task).touch()
                seen("A ended first", "B ended third")
                for process in (first, second):
                    process.terminate()
                assert [process.wait(60) for process in (first, second)] == [0, 0]
        assert len({process for _, process, _, _ in notes()}) == 4  # one for each message
    finally:
        redis.kill()


@pytest.mark.long
@pytest.mark.skipif(shutil.which(Redis.program) is None, reason=Redis.missing())
def test_a_worker_whose_line_to_the_broker_is_silent_makes_another(settings: Settings, tmp_path: Path):
    redis = Redis(tmp_path)
    try:
        app = worker_app(settings.model_copy(update={"celery_broker_url": SecretStr(redis.url)}))
        with Client.from_url(redis.url) as broker, Proxy(redis.url) as proxy, worker("A", proxy.url, tmp_path):
            wait_for(lambda: broker.pubsub_numpat() > 0, 60, lambda: "it does not listen", tmp_path / "A.log")
            proxy.silence()

            def executes_what_is_sent() -> bool:
                # What Redis hands to a line as it is given up is lost: the database has such a run sent again.
                task = f"task-{time.monotonic_ns()}"
                (tmp_path / task).touch()
                app.send_task("wait", [str(tmp_path), task], queue=HOURS)
                time.sleep(1)
                return (tmp_path / "notes").exists()

            wait_for(executes_what_is_sent, 90, lambda: "it takes nothing", tmp_path / "A.log")
    finally:
        redis.kill()
