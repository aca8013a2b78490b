"""What goes wrong outside is said in a sentence with what to do: settings, state directories, disks, roles, endpoints."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from babylon_rl.cli import run
from babylon_rl.cli.caches import keep_caches_at_home, variables
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl_tests.cli.test_command_line import RUN, environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.store.servers import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]
FUTURE = ("--from", "2931-10-29T10:00", "--to", "2931-10-29T14:00")


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """``refused("models", EPOCHS="0")``: the exit code and what it said, which is never a traceback."""

    def get(*arguments: str, **given: str) -> tuple[int, str]:
        done = run_command(*arguments, environment=environment(tmp_path / "home", **given), directory=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    return get


@pytest.mark.long
def test_a_judge_without_its_key_is_listed_with_the_other_settings(refused):
    code, said = refused("models", JUDGE_MODEL="openai/gpt-4o", EPOCHS="0", BABYLON_RL_HOME="~no-such-user/state")
    assert code == 2
    assert said.startswith("3 settings are not allowed:")
    assert "JUDGE_MODEL is 'openai/gpt-4o': needs OPENAI_API_KEY; set it, or set JUDGE_MODEL=heuristic." in said
    assert "BABYLON_RL_HOME is '~no-such-user/state'" in said


@pytest.mark.long
def test_lines_of_dotenv_that_cannot_be_read_are_listed_and_not_left_out(refused, tmp_path: Path):
    (tmp_path / ".env").write_text('EPOCHS=2\nthis is no setting\nITERATIONS="3\n')
    code, said = refused("settings", EPOCHS="0")
    assert code == 2
    assert [line.partition(":")[0].strip() for line in said.splitlines()[1:]] == [".env, line 2", ".env, line 3", "EPOCHS is '0'"]


@pytest.mark.slow
def test_a_dotenv_that_is_no_text_is_a_sentence(refused, tmp_path: Path):
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
    code, said = refused("settings")
    assert (code, said) == (2, f"{tmp_path / '.env'} cannot be read: it is not UTF-8 text. Mend it, or move it away.\n")


@pytest.mark.long
def test_a_damaged_state_directory_says_what_to_do(refused, tmp_path: Path):
    home = tmp_path / "home"
    assert refused("migrate")[0] == 0
    cluster = Cluster(home)
    cluster.password_file.write_text("")
    assert refused("models") == (0, "No model is registered yet. `babylon-rl train` makes the first; "
                                    "the base model is there without it, under the name base.\n")  # fmt: skip
    cluster.password_file.write_text("wrong\n")
    code, said = refused("models")
    assert code == 3 and "Delete that file and run the command again" in said
    cluster.password_file.unlink()
    assert refused("models")[0] == 0
    (cluster.directory / "global" / "1262").rename(tmp_path / "1262")  # pg_database: the server starts and takes nobody in
    code, said = refused("models")
    assert code == 3 and "takes no connection" in said and "restore that directory from a backup" in said
    (tmp_path / "1262").rename(cluster.directory / "global" / "1262")
    cluster.directory.rename(tmp_path / "kept")
    cluster.directory.write_text("not a directory")
    code, said = refused("models")
    assert (code, said) == (3, f"{cluster.directory} is a file, and the database's directory belongs there. Move it away.\n")
    cluster.directory.unlink()
    (tmp_path / "kept").rename(cluster.directory)
    (home / "children").write_text("not a directory")
    code, said = refused("dagster", "instance", "info")
    assert code == 3 and said.startswith(f"File exists: {home / 'children'}. Something else is in the place")


def test_a_role_without_rights_on_dagsters_schema_is_told_the_statement(refused, database: Database):
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA IF NOT EXISTS "babylon_dagster"')
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
        try:
            url = re.sub("//[^@]*@", "//reader:reader@", database.url)
            code, said = refused("dagster", "job", "list", DATABASE_URL=url)
        finally:
            connection.execute("DROP ROLE reader")
    assert code == 3
    assert 'ALTER SCHEMA "babylon_dagster" OWNER TO "reader"' in said


@pytest.mark.slow
@pytest.mark.parametrize("command", [("train",), ("score",), ("sync-outcomes",), ("windows",)])
def test_hours_that_have_not_begun_are_refused(refused, database: Database, command: tuple[str, ...]):
    code, said = refused(*command, *FUTURE, DATABASE_URL=database.url, TRAIN_RL_LOCAL="true")
    assert code == 2
    assert said.startswith("2931-10-29T10:00 lies in the future")


@pytest.mark.slow
def test_nothing_to_show_or_train_is_said(refused, database: Database):
    given = {"DATABASE_URL": database.url, "LOCAL_BASE_MODEL": "dry"}
    assert refused("batches", **given) == (0, "No model has been trained yet. `babylon-rl train` freezes a batch and trains on it.\n")
    assert "No hour here has a group to judge" in refused("score", **given)[1]
    assert "No complete hour here holds a trajectory" in refused("sync-outcomes", **given)[1]
    assert refused("batches", "cancel", "nope", "--reason", "x", **given)[0] == 2
    assert refused("train", **given)[0] == 2
    code, said = refused("train", TRAIN_RL_LOCAL="true", **given)
    assert code == 1 and "`babylon-rl windows` shows every hour" in said


def test_a_model_that_cannot_answer_is_refused(refused, database: Database):
    given = {"DATABASE_URL": database.url}
    code, said = refused("spawn-agents", "--agents", "1", "--model", "x@nowhere", **given)
    assert code == 2 and "write MODEL@URL" in said
    code, said = refused("spawn-agents", "--llm-agents", "1", LOCAL_BASE_MODEL="dry", **given)
    assert code == 3 and "LOCAL_BASE_MODEL is dry" in said


@pytest.mark.parametrize(
    "number, advice", [(errno.ENOSPC, "Make room there"), (errno.EACCES, "Run as the user"), (errno.EROFS, "Set BABYLON")]
)
def test_an_error_of_the_system_comes_with_advice(
    number: int, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)

    class Broken:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number), "a-file")

        def flush(self) -> None:
            return None

    monkeypatch.setattr(sys, "stdout", Broken())
    assert run(["settings", "--json"]) == 3
    assert capsys.readouterr().err.startswith(f"{os.strerror(number)}: a-file. {advice}")


def test_caches_of_libraries_go_into_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = (ROOT / "scripts" / "environment.sh").read_text()
    assert set(variables(tmp_path)) == set(re.findall(r"\b([A-Z_]+)=\"\$\{\1:-", script))
    for name in variables(tmp_path):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", "my-own")
    before = dict(os.environ)
    try:
        keep_caches_at_home()
        assert os.environ["HF_HOME"] == str(tmp_path / "home" / "cache" / "huggingface")
        assert os.environ["MPLCONFIGDIR"] == "my-own"
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


@pytest.mark.long
def test_a_command_without_make_leaves_nothing_in_the_home_directory(tmp_path: Path):
    own = tmp_path / "user"
    own.mkdir()
    inherited = {*variables(tmp_path), "TMPDIR"}
    given = {name: value for name, value in environment(tmp_path / "home", HOME=str(own)).items() if name not in inherited}
    for arguments in (["benchmark", "standings", "balanced", "--markets", "2"], ["spawn-agents"], ["score"]):
        subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=tmp_path, env=given, capture_output=True, check=True)
    assert list(own.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"user", "home"}


@pytest.mark.parametrize(("given", "depth", "expected"), [({}, 0, "{home}/tmp"), ({"TMPDIR": "/var/tmp"}, 0, "/var/tmp"), ({}, 64, "/tmp")])
def test_temporary_files_of_a_command_without_make_lie_in_the_state_directory(given: dict[str, str], depth: int, expected: str):
    """A path too long for unix sockets keeps the system's directory, and TMPDIR stays where the user has set it."""
    asked = "from babylon_rl.cli.caches import keep_caches_at_home as keep; keep(); import tempfile; print(tempfile.gettempdir())"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        home = Path(short) / ("h" + depth * "x")
        free = {name: value for name, value in environment(home).items() if name != "TMPDIR"}
        found = subprocess.run([sys.executable, "-c", asked], cwd=short, env=free | given, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected.format(home=home)
