"""Everything killed at once in the middle of a training, the database included, as a reboot does: the next start ends it.

ROUNDS=10 in the environment kills ten of each kind instead of one.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from babylon_rl.automation.instance import prepare_instance
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import running_url, use_server
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.e2e.dev import running_dev
from babylon_rl_tests.faults.world import AGENTS, ROWS, make_world
from babylon_rl_tests.repeatable import ROUNDS
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.tiny_model import make_base

pytestmark = [pytest.mark.long, pytest.mark.timeout(900 * ROUNDS)]
HOURS = 8
LIMIT_S = 600
STEPS = 'SELECT "iteration", "finishedAt", "loss" FROM babylon_rl.training_steps WHERE "finishedAt" IS NOT NULL ORDER BY 1'


@dataclass(frozen=True)
class Place:
    """A state directory of its own with an embedded database, and how commands are started on it."""

    home: Path
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of ours but what the test chose."""
        unset = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME"}
        return (
            {name: value for name, value in os.environ.items() if name not in unset} | self.variables | {"BABYLON_RL_HOME": str(self.home)}
        )

    def train(self) -> subprocess.Popen[str]:
        """The command, in the background."""
        command = [sys.executable, "-m", "babylon_rl", "train"]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds; nothing while the database or the table is not there."""
        url = running_url(self.home)
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):
            if url is not None:
                with psycopg.connect(url, connect_timeout=5) as connection:
                    return connection.execute(query).fetchall()
        return []

    def wait(self, query: str, expected: Callable[[list[tuple[Any, ...]]], bool]) -> None:
        """Until a query finds what is expected."""
        deadline = time.monotonic() + LIMIT_S
        while not expected(self.ask(query)):
            assert time.monotonic() < deadline, self.ask("SELECT run_id, status FROM babylon_dagster.runs")
            time.sleep(0.05)

    @property
    def state(self) -> str:
        """The state of the only batch; empty before it is frozen."""
        return "".join(state for (state,) in self.ask('SELECT "state" FROM babylon_rl.batches'))

    def kill_everything(self) -> None:
        """SIGKILL for all that was started on this directory, and for its database."""
        while family := self._family():
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=5)

    def _family(self) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(OSError, psutil.NoSuchProcess, ValueError, IndexError):
            server = psutil.Process(int((self.home / "postgres" / "postmaster.pid").read_text().split()[0]))
            found = [process for process in (server, *server.children(recursive=True)) if "postgres" in process.name()]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("BABYLON_RL_HOME") == str(self.home):
                    found.append(process)
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory at rest whose database holds hours that were read and nothing that was trained."""
    home = tmp_path_factory.mktemp("template") / "home"
    values = {name: field.default for name, field in Settings.model_fields.items()} | {"babylon_rl_home": home}
    settings = Settings(_env_file=None, **values)
    with use_server(home) as url:
        database = Database(url, url)
        migrate(database)
        database.prepare_dagster_schema()
        prepare_instance(database, settings)
        with database.connect() as connection:
            make_world(url, settings, connection, HOURS)
    return home


@pytest.fixture
def make_place(template: Path, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """``make_place()``: a copy of the template; nothing of it runs after the test."""
    base = make_base(tmp_path / "base")
    variables = {
        "TRAIN_RL_LOCAL": "true", "LOCAL_BASE_MODEL": str(base), "ITERATIONS": str(HOURS), "WINDOWS_PER_ITERATION": "1",
        "LEARNING_RATE": "1e-5", "WARMUP_STEPS": "0", "MIN_AGENTS_PER_WINDOW": "2", "MIN_ACTIONS_PER_TRAJECTORY": "1",
        "TRAINING_MIN_TRAJECTORIES": "1", "TRAINING_MIN_GROUPS": "1", "TRAINING_MIN_GROUP_SIZE": "1", "DATA_QUALITY_THRESHOLD": "0",
        "BENCHMARK_MARKETS": "2", "FIRST_WINDOW": "2100-01-01T00:00", "TMPDIR": "/tmp",
    }  # fmt: skip
    made: list[Place] = []

    def make() -> Place:
        made.append(Place(tmp_path / f"home-{len(made)}", variables))
        subprocess.run(["cp", "-a", template, made[-1].home], check=True)
        return made[-1]

    yield make
    for place in made:
        place.kill_everything()


def assert_trained_once(place: Place, before: dict[int, datetime]) -> list[float]:
    """One version of one batch, every iteration finished once, and what was finished before the kill not again; the losses."""
    assert place.ask('SELECT "version" FROM babylon_rl.model_lineage') == [("v1.0.0",)]
    assert place.ask("SELECT status FROM training_batches") == [("completed",)]
    steps = place.ask(STEPS)
    assert [iteration for iteration, _, _ in steps] == list(range(1, HOURS + 1))
    assert {iteration: finished_at for iteration, finished_at, _ in steps if iteration in before} == before
    assert place.ask('SELECT count(*) FROM trajectories WHERE "usedInTraining"') == [(HOURS * AGENTS * ROWS,)]
    return [loss for _, _, loss in steps]


def killed_in_the_middle(place: Place, chance: random.Random, number: int, longest_s: float) -> dict[int, datetime] | None:
    """Kill everything at a random moment; the iterations that were finished, or None when the training had ended.

    Every other time once some iterations are finished, as most of a tiny training is the start of its processes.
    """
    least, moment_s = (chance.randint(1, HOURS - 2), 0.0) if number % 2 == 0 else (0, chance.uniform(0, longest_s))
    place.wait('SELECT "state" FROM babylon_rl.batches', bool)
    place.wait(STEPS, lambda found: len(found) >= least)
    time.sleep(moment_s)
    before = {iteration: finished_at for iteration, finished_at, _ in place.ask(STEPS)}
    state = place.state
    place.kill_everything()
    return None if state in ("completed", "") else before


def test_a_training_that_is_killed_with_its_database_is_ended_by_the_next_command(make_place: Callable[[], Place]):
    whole = make_place()
    process = whole.train()
    whole.wait('SELECT "state" FROM babylon_rl.batches', bool)
    began_s = time.monotonic()
    said, _ = process.communicate(timeout=LIMIT_S)
    longest_s = time.monotonic() - began_s
    assert process.returncode == 0, said
    with use_server(whole.home):
        losses = assert_trained_once(whole, {})
    chance, struck = random.Random(7), 0
    while struck < ROUNDS:
        place = make_place()
        first = place.train()
        before = killed_in_the_middle(place, chance, struck, longest_s)
        first.communicate()
        if before is None:
            continue
        began_s = time.monotonic()
        again = place.train()
        said, _ = again.communicate(timeout=LIMIT_S)
        assert again.returncode == 0, said
        struck += 1
        print(f"train {struck}: killed with {len(before)} of {HOURS} done; ended {time.monotonic() - began_s:.0f} s later")
        with use_server(place.home):
            assert assert_trained_once(place, before) == pytest.approx(losses, rel=1e-4)
            assert place.ask("SELECT count(*) FROM babylon_dagster.runs WHERE status = 'STARTED'") == [(0,)]


def test_a_killed_ui_with_daemon_code_server_and_database_goes_on_by_itself(make_place: Callable[[], Place]):
    chance, struck = random.Random(8), 0
    while struck < ROUNDS:
        place = make_place()
        with running_dev(place.home, **place.variables):
            before = killed_in_the_middle(place, chance, struck, longest_s=40)
        if before is None:
            continue
        began_s = time.monotonic()
        with running_dev(place.home, **place.variables):
            place.wait('SELECT "state" FROM babylon_rl.batches', lambda found: found == [("completed",)])
            struck += 1
            took_s = time.monotonic() - began_s
            print(f"dev {struck}: killed with {len(before)} of {HOURS} done; ended {took_s:.0f} s after the next start")
            assert_trained_once(place, before)
            (running,) = place.ask("SELECT count(*) FROM babylon_dagster.runs WHERE status = 'STARTED'")
            assert running[0] <= 1, "the run that goes on to the evidence"
