"""``backup``, ``restore`` and ``move-to`` as people and scripts call them."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from babylon_rl.cli import run
from babylon_rl.settings import Settings
from babylon_rl.store.copying import rows_of
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.store.servers import Holder
from babylon_rl_tests.store.test_copying import contents, is_empty

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """``call("backup", "file", home=..., database=...)``: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str, home: str = "home", database: Database | None = None) -> tuple[int, str, str]:
        monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / home))
        if database is None:
            monkeypatch.delenv("DATABASE_URL", raising=False)
        else:
            monkeypatch.setenv("DATABASE_URL", database.url)
        code = run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_it


def password_of(database: Database) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(database.url)["password"])


def test_a_backup_is_written_and_brought_back(call: Call, database: Database, empty_database: Database, tmp_path: Path) -> None:
    (tmp_path / "home" / "gateway").mkdir(parents=True)
    (tmp_path / "home" / "gateway" / "secret").write_text("key")
    code, out, _ = call("backup", "kept.zip", "--json", database=database)
    tables = contents(database)
    counted = {"verified": True, "tables": len(tables), "rows": rows_of(tables), "versions": [], "leftOut": []}
    assert (code, json.loads(out)) == (0, {"files": ["kept.zip"], **counted})
    code, out, said = call("restore", "kept.zip", "--json", home="new", database=empty_database)
    assert (code, json.loads(out)) == (0, {"files": [str(tmp_path / "new" / "gateway" / "secret")], **counted})
    assert "least-privilege.sql again" in said
    assert contents(empty_database) == tables


def test_what_cannot_be_done_is_a_sentence_and_an_exit_code(call: Call, database: Database, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    cases = [
        (("backup", "there"), 2, "there is there already, and a backup is never replaced."),
        (("backup", "no/such/folder"), 3, "No such file or directory: no/such/folder"),
        (("restore", "absent"), 3, "No such file or directory: absent."),
        (("restore", "there"), 3, "there is damaged: File is not a zip file. Nothing was changed."),
        (("move-to", database.url), 2, "DATABASE_URL is set: the database is on a server of your own already."),
    ]
    for arguments, code, sentence in cases:
        done = call(*arguments, database=database)
        assert done[0] == code and done[1] == "" and sentence in done[2]
        assert password_of(database) not in done[2]


@pytest.mark.slow
def test_the_embedded_database_moves_to_another_server_and_stays(
    call: Call, settings: Settings, database: Database, empty_database: Database, tmp_path: Path
) -> None:
    with open_database(settings) as embedded:
        migrate(embedded)
        before = contents(embedded)
    with Holder(settings.home) as other:
        other.url()
        code, _, said = call("move-to", empty_database.url)
        assert (code, "Other commands use the embedded database." in said) == (2, True)
        assert other.leave() == 0
    code, _, said = call("move-to", database.url)
    assert code == 2 and "is not empty" in said and is_empty(empty_database)
    code, out, said = call("move-to", "mysql://nowhere/db")
    assert code == 2 and "URL is not a connection string" in said
    code, out, said = call("move-to", empty_database.url, "--json")
    assert code == 0 and json.loads(out)["verified"] is True and json.loads(out)["tables"] == len(before)
    assert f"DATABASE_URL=postgresql://USER:PASSWORD@{empty_database.address}" in said
    assert password_of(empty_database) not in said + out
    assert contents(empty_database) == before
    assert Cluster(settings.home).running_port() is None
    with open_database(settings) as embedded:
        assert contents(embedded) == before
