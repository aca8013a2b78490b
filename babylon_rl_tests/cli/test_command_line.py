"""What a person and a script see of babylon-rl: exit codes, sentences instead of tracebacks, one JSON document."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from babylon_rl.cli import COMMANDS, load
from babylon_rl.cli.system import _free_port
from babylon_rl.errors import UsageError
from babylon_rl.setting_sources import GONE
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.store.servers import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]
RUN = "from babylon_rl.cli import main; main()"


def environment(home: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return inherited | {"BABYLON_RL_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "160"} | variables


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """``command("migrate", "--json", DATABASE_URL=...)`` in an empty directory."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, environment=environment(tmp_path / "home", **variables), directory=tmp_path)

    return run


@pytest.mark.slow
def test_help_lists_every_command(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for name in ("migrate", "settings", "env", "dagster", "dev", "stop", "verify-system"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("arguments", [["no-such-command"], ["migrate", "--no-such-option"], []])
def test_bad_usage_is_exit_code_2(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_bad_settings_are_all_in_one_message(command: Command) -> None:
    done = command("migrate", EPOCHS="0", DATABASE_URL="mysql://u:s3cret@h/d", KL_PENALTY="-1")
    assert done.returncode == 2
    assert done.stderr.startswith("3 settings are not allowed:")
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_unreachable_database_is_a_sentence_and_exit_code_3(command: Command) -> None:
    done = command("migrate", DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/d")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("The database at 127.0.0.1:1/d cannot be used: Connection refused.")
    assert "s3cret" not in done.stderr


@pytest.mark.slow
def test_migrate_speaks_json(command: Command, empty_database: Database) -> None:
    planned = json.loads(command("migrate", "--check", "--json", DATABASE_URL=empty_database.url).stdout)
    done = json.loads(command("migrate", "--json", DATABASE_URL=empty_database.url).stdout)
    again = command("migrate", "--json", DATABASE_URL=empty_database.url)
    assert planned == done
    assert done["applied"][0] == "0001_contract_tables"
    assert json.loads(again.stdout) == {"applied": [], "adopted": [], "differences": []}
    assert again.stderr == ""


def test_migrate_tells_a_person_what_it_did(command: Command, empty_database: Database) -> None:
    first = command("migrate", DATABASE_URL=empty_database.url).stdout
    assert "applied 0001_contract_tables" in first
    assert "created 19 tables of the contract" in first
    assert "is up to date" in command("migrate", DATABASE_URL=empty_database.url).stdout


def test_settings_masks_secrets_and_names_sources(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EPOCHS=3\nITERATIONS=4\n")
    addresses = {"MODEL_STORAGE_URL": "sftp://me:s3cret@host/models", "COMPUTE_LOGS_URL": "s3://bucket/logs?key=s3cret"}
    done = command("settings", "--json", WANDB_API_KEY="s3cret", EPOCHS="2", BATCH_SIZE="", **addresses)
    found = {row["name"]: row for row in json.loads(done.stdout)["settings"]}
    assert "s3cret" not in done.stdout
    assert [found[name]["value"] for name in addresses] == ["sftp://host/models", "s3://bucket/logs"]
    assert found["WANDB_API_KEY"] == {"name": "WANDB_API_KEY", "value": "***", "source": "environment"}
    assert found["EPOCHS"] == {"name": "EPOCHS", "value": 2, "source": "environment"}
    assert found["ITERATIONS"] == {"name": "ITERATIONS", "value": 4, "source": ".env"}
    assert found["BATCH_SIZE"]["source"] == "default"
    assert len(found) == len(Settings.model_fields)


def test_a_variable_that_is_gone_is_named_with_what_to_do(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("READ_WAIT_SECONDS=3\nEPOCHS=3\n")
    done = command("settings", "--json", READ_DATABASE_URL="postgresql://u:s3cret@replica/d")
    assert done.returncode == 0
    told = [line.partition(" is set but has no effect: ") for line in done.stderr.splitlines()]
    assert [(name, advice) for name, _, advice in told] == [(name, f"{GONE[name]}.") for name in ("READ_DATABASE_URL", "READ_WAIT_SECONDS")]
    assert json.loads(done.stdout)["gone"] == done.stderr.splitlines()
    assert command("settings", READ_DATABASE_URL="").stderr.count("no effect") == 1


def test_every_variable_that_is_gone_says_what_to_do(command: Command) -> None:
    done = command("settings", "--json", **dict.fromkeys(GONE, "1"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["gone"] == [f"{name} is set but has no effect: {advice}." for name, advice in GONE.items()]


def test_no_setting_is_called_gone_and_there_are_ninety_at_most() -> None:
    assert not {name.lower() for name in GONE} & Settings.model_fields.keys()
    assert len(Settings.model_fields) <= 90


@pytest.mark.slow
def test_env_needs_a_running_database(command: Command, database: Database) -> None:
    assert "does not run now" in command("env").stderr
    printed = command("env", DATABASE_URL=database.url).stdout
    shell = subprocess.run(["sh", "-c", f"{printed}\necho $DATABASE_URL"], capture_output=True, text=True, check=True)
    assert shell.stdout.strip() == database.url
    assert "export BABYLON_RL_DAGSTER_URL=" in printed


@pytest.mark.long
def test_stop_stops_what_a_crash_left(command: Command, tmp_path: Path) -> None:
    code = "import os, signal; from pathlib import Path; from babylon_rl.store.embedded import use_server\n"
    code += f"with use_server(Path({str(tmp_path / 'home')!r})): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert Cluster(tmp_path / "home").running_port() is not None
    assert "Stopped the embedded database on port" in command("stop").stdout
    assert Cluster(tmp_path / "home").running_port() is None
    assert "Nothing" in command("stop").stdout


def test_output_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    line = f"{sys.executable} -c '{RUN}' settings | head -1"
    variables = environment(tmp_path / "home")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("setting")
    assert done.stderr == ""


@pytest.mark.long
def test_dagster_runs_on_the_projects_instance_and_returns_its_exit_code(command: Command, database: Database) -> None:
    done = command("dagster", "instance", "info", DATABASE_URL=database.url)
    assert done.returncode == 0, done.stderr
    assert "home/dagster" in done.stdout
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM babylon_dagster.runs").fetchone() == (0,)
    assert command("dagster", "no-such-thing", DATABASE_URL=database.url).returncode == 2


@pytest.mark.slow
def test_verify_system_has_a_line_for_each_part(command: Command, database: Database, empty_database: Database) -> None:
    done = command("verify-system", "--json", DATABASE_URL=database.url)
    statuses = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert set(statuses) == {
        "settings", "disk", "storage", "database", "clock", "schema", "data", "automation", "registry", "judge", "weights",
    }  # fmt: skip
    assert statuses["schema"] == "PASS"
    unmigrated = command("verify-system", "--json", DATABASE_URL=empty_database.url)
    assert unmigrated.returncode == 1
    unreachable = command("verify-system", DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/d")
    assert unreachable.returncode == 1
    assert "FAIL" in unreachable.stdout


@pytest.mark.long
def test_interrupted_command_stops_its_program_and_the_embedded_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    started = subprocess.Popen(
        [sys.executable, "-c", RUN, "dagster", "instance", "info"],
        cwd=tmp_path,
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(home.glob("children/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=60)[1].endswith("Interrupted.\n")
    assert started.returncode == 130
    assert list(home.glob("children/*.json")) == []
    assert Cluster(home).running_port() is None
    with use_server(home):
        pass


HEAVY = ("psycopg", "pydantic", "dagster", "torch", "numpy", "rich")


def test_help_imports_no_group_and_nothing_heavy(tmp_path: Path) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules))); {RUN}"
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path / "home"), capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert "typer" in imported
    assert [name for name in imported if name.split(".")[0] in HEAVY] == []
    assert {name for name in imported if name.startswith("babylon_rl.")} == {"babylon_rl.cli", "babylon_rl.errors", "babylon_rl.heap"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_first_sentence_of_its_own_help(name: str) -> None:
    assert COMMANDS[name][1] == load(name).get_short_help_str(limit=1_000)


def test_no_description_of_a_command_is_cut_in_80_columns() -> None:
    groups = [{name: load(name) for name in COMMANDS}, *(getattr(load(name), "commands", {}) for name in COMMANDS)]
    for commands in filter(None, groups):
        # of 80 columns click leaves two free, and puts six beside the longest name
        room = 72 - max(map(len, commands))
        described = {name: command.get_short_help_str(limit=1_000) for name, command in commands.items()}
        assert {name: words for name, words in described.items() if len(words) > room} == {}


def test_the_port_of_the_ui_is_looked_for_at_the_address_where_it_listens() -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        assert port < _free_port("127.0.0.2", port) < port + 50
    with pytest.raises(UsageError, match=r"--host no\.such\.host\.invalid is no address of this machine"):
        _free_port("no.such.host.invalid", 3000)
