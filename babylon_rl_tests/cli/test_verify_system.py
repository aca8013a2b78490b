"""verify-system, line by line: what would fail tomorrow is said today, and nothing is changed."""

import json
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.cli import run, system_checks
from babylon_rl.cli.production_checks import check_production
from babylon_rl.cli.system_checks import check_system
from babylon_rl.serving.access import key_hash
from babylon_rl.settings import Settings
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.database import Database
from babylon_rl.training.backends.protocol import TRAINING_GB
from babylon_rl.windows import utc_now, window_of
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.object_store import ObjectStore
from babylon_rl_tests.rows import insert, make_trajectory
from babylon_rl_tests.serving.gateways import add_version
from babylon_rl_tests.serving.model_stand_in import model_stand_in

Lines = dict[str, tuple[str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def looked(database: Database, settings: Settings) -> Callable[..., Lines]:
    """``looked(**settings)``: (status, detail) by line, on an empty database."""

    def look(*, production: bool = False, **changes: Any) -> Lines:
        given = settings.model_copy(update={"database_url": SecretStr(database.url)} | changes)
        return {check.name: (check.status, check.detail) for check in check_system(given, production)}

    return look


def test_a_new_installation_passes_and_nothing_is_changed(looked: Callable[..., Lines], database: Database, settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    found = looked()
    assert {name for name, (status, _) in found.items() if status == "FAIL"} == set()
    assert (found["data"][1], found["automation"][0]) == ("no trajectory yet", "WARN")
    assert list(settings.home.rglob("*")) == []
    with database.connect() as connection:
        schemas = connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'babylon_dagster'").fetchone()
    assert schemas == (0,)


@pytest.mark.long
def test_nothing_of_a_database_a_home_and_a_storage_in_use_is_changed(
    sample_database: Database, settings: Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    url, tables = object_store.bucket(), read_tables(sample_database)
    for place in ("checkpoints/v1.0.0", "benchmarks", "dagster"):
        (settings.home / place).mkdir(parents=True)
        (settings.home / place / "file").write_text(place)
    (tmp_path / "file").write_text("x")
    object_store.files().put_file(str(tmp_path / "file"), f"{url}/v1.0.0/file")

    def state() -> tuple[dict[str, Any], dict[Path, bytes], list[str]]:
        files = {path: path.read_bytes() for path in settings.home.rglob("*") if path.is_file()}
        return tables(), files, object_store.files().find(url)

    before = state()
    changes = {"database_url": SecretStr(sample_database.url), "model_storage_url": url}
    found = {check.name: check.status for check in check_system(settings.model_copy(update=changes), production=True)}
    assert found["storage"] == found["schema"] == "PASS"
    assert state() == before and len(before[0]) > 30 and len(before[1]) == 3 and len(before[2]) == 1


def read_tables(database: Database) -> Callable[[], dict[str, Any]]:
    """A function that hashes every table's rows."""
    tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'babylon_rl')"
    rows = "SELECT md5(string_agg(row::text, ' ' ORDER BY row::text)) FROM {} row"

    def read() -> dict[str, Any]:
        with database.connect() as connection:
            return {name: connection.execute(rows.format(name)).fetchone() for (name,) in connection.execute(tables).fetchall()}

    return read


@pytest.mark.parametrize(("hours", "status"), [(1, "PASS"), (30, "WARN")])
def test_the_age_of_the_newest_row(looked: Callable[..., Lines], database: Database, hours: int, status: str) -> None:
    start = utc_now() - timedelta(hours=hours)
    with database.connect() as connection:
        row = make_trajectory(startTime=start, endTime=start + timedelta(seconds=30), windowId=window_of(start))
        insert(connection, "trajectories", [row])
    found = looked()["data"]
    assert found[0] == status and ("the newest trajectory ended" in found[1])
    assert looked(production=True)["data"][0] == status.replace("WARN", "FAIL")


@pytest.fixture
def beat(database: Database) -> Callable[[timedelta], None]:
    """``beat(age)``: Dagster's tables, with a daemon that was seen so long ago."""
    with database.connect(autocommit=True) as connection:
        connection.execute("CREATE SCHEMA babylon_dagster")
        connection.execute("CREATE TABLE babylon_dagster.daemon_heartbeats (daemon_type text, body text)")
        connection.execute("CREATE TABLE babylon_dagster.runs (id int)")
        connection.execute("CREATE TABLE babylon_dagster.instigators (status text, instigator_body text)")

    def beat(age: timedelta) -> None:
        with database.connect(autocommit=True) as connection:
            seen = (utc_now() - age - datetime(1970, 1, 1)).total_seconds()
            connection.execute("DELETE FROM babylon_dagster.daemon_heartbeats")
            connection.execute("INSERT INTO babylon_dagster.daemon_heartbeats VALUES ('SENSOR', %s)", [json.dumps({"timestamp": seen})])

    return beat


@pytest.mark.slow
def test_what_stopped_fails_where_automation_is_meant_to_run(looked: Callable[..., Lines], beat: Callable[[timedelta], None]) -> None:
    # It has run here once, so it is meant to: no daemon and no data then.
    beat(timedelta(hours=3))
    assert (looked()["automation"][0], looked()["data"][0]) == ("FAIL", "FAIL")
    stopped = looked(automation_status="stopped")
    assert (stopped["automation"][0], stopped["data"][0]) == ("WARN", "WARN")
    beat(timedelta(seconds=20))
    assert (looked()["automation"][0], looked()["data"][0]) == ("PASS", "FAIL")


def test_the_daemon_and_what_is_switched_off(looked: Callable[..., Lines], database: Database, beat: Callable[[timedelta], None]) -> None:
    beat(timedelta(seconds=20))
    assert looked()["automation"][0] == "PASS"
    with database.connect(autocommit=True) as connection:
        body = json.dumps({"origin": {"job_name": "start_training"}})
        connection.execute("INSERT INTO babylon_dagster.instigators VALUES ('STOPPED', %s)", [body])
    status, detail = looked()["automation"]
    assert status == "WARN" and "switched off: start_training" in detail
    beat(timedelta(hours=3))
    assert "the daemon was seen 3 hours ago" in looked()["automation"][1] and "nothing happens by itself" in looked()["automation"][1]


def test_the_judge_is_asked_once(looked: Callable[..., Lines]) -> None:
    with judging() as judge:
        status, detail = looked(judge_model="openai/scripted", judge_base_url=judge.url)["judge"]
        assert status == "WARN" and "it is there" in detail  # it answers prompts of the judge alone
        assert judge.url in detail
    with model_stand_in() as answering:
        status, detail = looked(judge_model="openai/scripted", judge_base_url=f"{answering.url}/v1")["judge"]
        assert status == "PASS" and detail.startswith("answered a trial question in ") and answering.url in detail
        assert len(answering.heads) == 1
    status, detail = looked(judge_model="openai/scripted", judge_base_url=judge.url)["judge"]
    assert status == "FAIL" and "does not answer" in detail


@pytest.mark.parametrize("given", ["/no/such/model", "./nowhere", "nobody"])
def test_weights_that_are_not_there_fail(looked: Callable[..., Lines], given: str) -> None:
    status, detail = looked(local_base_model=given)["weights"]
    assert status == "FAIL" and given in detail


def test_a_damaged_model_directory_fails(looked: Callable[..., Lines], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert looked(local_base_model=str(tmp_path / "model"))["weights"] == (
        "FAIL",
        f"LOCAL_BASE_MODEL {tmp_path / 'model'}: config.json is missing.",
    )


@pytest.mark.slow
def test_a_storage_that_cannot_be_written_fails(looked: Callable[..., Lines], tmp_path: Path) -> None:
    assert looked(model_storage_url=f"file://{tmp_path}/store")["storage"][0] == "PASS"
    assert list(tmp_path.glob("store")) == []
    (tmp_path / "file").write_text("in the way")
    status, detail = looked(model_storage_url=f"file://{tmp_path}/file")["storage"]
    assert status == "FAIL" and "Mend it, or choose another place" in detail


@pytest.mark.slow
def test_an_object_storage_is_tried_and_one_that_refuses_fails(looked: Callable[..., Lines], object_store: ObjectStore) -> None:
    url = object_store.bucket()
    status, detail = looked(model_storage_url=url)["storage"]
    assert status == "PASS" and url in detail and object_store.files().find(url) == []
    status, detail = looked(model_storage_url="s3://no-such-bucket/models")["storage"]
    assert status == "FAIL" and "s3://no-such-bucket/models" in detail and "Mend it, or choose another place" in detail


def test_too_little_room_for_a_training_fails(looked: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(train_rl_local=True, local_base_model="dry")["disk"][0] == "PASS"
    monkeypatch.setitem(TRAINING_GB, "dry", 1e9)
    status, detail = looked(train_rl_local=True, local_base_model="dry")["disk"]
    assert status == "FAIL" and "Make room, or move BABYLON_RL_HOME" in detail


def test_a_clock_that_is_ahead_fails(looked: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_checks, "utc_now", lambda: utc_now() + timedelta(minutes=5))
    status, detail = looked()["clock"]
    assert status == "FAIL" and "are 300." in detail


@pytest.fixture
def produced(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Lines]:
    """``produced(**settings)``: the checklist where every setting is right, but for those given."""
    monkeypatch.chdir(tmp_path)
    right = {
        "database_url": SecretStr(database.url), "use_rl_model": False, "train_rl_local": True,
        "alert_webhook_url": SecretStr("http://127.0.0.1:9/hook"),
        "local_base_model": "dry", "cron_secret": SecretStr("x" * 32),
    }  # fmt: skip
    with database.connect() as connection:
        for name, admin in (("ada", True), ("agents", False)):
            create_key(connection, ClientKey(name, key_hash(name), 60, None, utc_now(), admin=admin))

    def look(**changes: Any) -> Lines:
        return {check.name: (check.status, check.detail) for check in check_production(settings.model_copy(update=right | changes))}

    return look


def test_the_checklist_passes_where_everything_is_right(produced: Callable[..., Lines]) -> None:
    unseen = {"versions", "an emergency"}
    assert {name for name, (status, _) in produced().items() if status != "PASS"} == unseen


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"use_rl_model": None}, "RL is a decision"),
        ({"rl_fallback_to_base": False}, "fallback"),
        ({"alert_webhook_url": None}, "monitoring and alerts"),
        ({"min_improvement": -1.0}, "validation before deployment"),
        ({"cron_secret": SecretStr("short")}, "servers"),
        ({"judge_model": "openai/x"}, "money"),
        ({"train_rl_local": False}, "money"),
        ({"record_private_fields": "prompts, agent=hash"}, "privacy"),
        ({"record_private_fields": "agent", "record_hash_key": SecretStr("key")}, "privacy"),
        ({"record_private_fields": "agents"}, "privacy"),
    ],
)
def test_each_wrong_setting_fails_its_line_alone(produced: Callable[..., Lines], wrong: dict[str, Any], line: str) -> None:
    assert [name for name, (status, _) in produced(**wrong).items() if status == "FAIL"] == [line]


def test_a_remote_database_without_tls_and_the_embedded_one_fail(settings: Settings) -> None:
    from babylon_rl.cli.production_checks import _database

    far = "postgresql://u:p@db.example.com/babylon"
    statuses = [
        _database(settings.model_copy(update={"database_url": None if url is None else SecretStr(url)}))[0]
        for url in (None, far, f"{far}?sslmode=prefer", f"{far}?sslmode=require", "postgresql://u:p@localhost/babylon")
    ]
    assert statuses == ["FAIL", "FAIL", "FAIL", "PASS", "PASS"]
    urls = ("u:p@127.0.0.1:1,db.example.com:2/babylon", "/babylon?host=db.example.com", "/babylon?host=/run/postgresql", "/babylon")
    several = [_database(settings.model_copy(update={"database_url": SecretStr(f"postgresql://{url}")}))[0] for url in urls]
    assert several == ["FAIL", "FAIL", "PASS", "PASS"]


def test_a_deployed_version_that_did_not_pass_and_missing_keys_fail(produced: Callable[..., Lines], database: Database) -> None:
    add_version(database, "v1.0.0")
    assert "its gate says no decision" in produced()["validation before deployment"][1]
    with database.connect() as connection:
        connection.execute("DELETE FROM babylon_rl.client_keys WHERE admin")
    assert produced()["servers"][0] == "FAIL"


def test_secrets_in_an_env_file_that_others_read_fail(produced: Callable[..., Lines], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KEY=k3y-of-mine\nBATCH_SIZE=8\n")
    os.chmod(tmp_path / ".env", 0o644)
    status, detail = produced()["keys"]
    assert status == "FAIL" and "holds WANDB_API_KEY and others may read it" in detail and "k3y" not in detail
    os.chmod(tmp_path / ".env", 0o600)
    assert produced()["keys"][0] == "PASS"


def test_the_command_goes_through_the_rows_of_the_page(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["verify-system", "--production", "--json"]) == 1
    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]
    page = (ROOT / "docs/howto/production.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)
    assert rows[0] == "check" and names[names.index("RL is a decision") :] == rows[1:]
