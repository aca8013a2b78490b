"""Admin API over real HTTP: its answers agree with the database, and what it must refuse is refused."""

import hashlib
import json
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from msgspec import to_builtins
from pydantic import SecretStr

from babylon_rl.files.durable import sha256
from babylon_rl.files.file_sets import content_folder
from babylon_rl.models.checkpoints import load_manifest, verify
from babylon_rl.serving.access import key_hash
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.store.batches import REGISTRY_LOCK
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now
from babylon_rl_tests.evaluation.conftest import MakeVersion, write_tensors
from babylon_rl_tests.serving.admin_server import AdminServer, DagsterStandIn, dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import add_version, rows, wait_for
from babylon_rl_tests.serving.live_rows import insert_calls
from babylon_rl_tests.serving.status_rows import QUALITY, shown
from babylon_rl_tests.training.conftest import read_sample

__all__ = ["read_sample"]
TRIGGER = "/api/admin/training/trigger"
STATUS = "/api/admin/training/status"
DEPLOY, ROLLBACK = "/api/admin/training/deploy", "/api/admin/training/rollback"
EASY = {"training_min_trajectories": 10, "training_min_groups": 1, "data_quality_threshold": 0.0}


@pytest.fixture
def dagster() -> Iterator[DagsterStandIn]:
    with dagster_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def settings(settings: Settings, dagster: DagsterStandIn) -> Settings:
    """Settings that choose the dry trainer."""
    return settings.model_copy(update={"dagster_url": dagster.url, "train_rl_local": True, "local_base_model": "dry"})


@pytest.fixture
def admin(settings: Settings, database: Database) -> Iterator[AdminServer]:
    """The API of an empty database."""
    with running_admin(settings, database, starts_a_minute=1000) as server:
        yield server


@pytest.fixture
def sample(settings: Settings, read_sample: Database) -> Iterator[AdminServer]:
    """The API of the recorded game, in which there is enough to train."""
    with running_admin(settings.model_copy(update=EASY), read_sample, starts_a_minute=1000) as server:
        yield server


def test_the_status_is_the_document_of_the_command(sample: AdminServer, read_sample: Database) -> None:
    add_version(read_sample, "v1.0.0")
    job = sample.post(TRIGGER).body["jobId"]
    answer = sample.get(STATUS).body
    assert answer["automation"]["training"]["currentJob"]["batchId"] == answer["progress"]["batchId"] == job
    with read_sample.connect() as connection:
        expected = to_builtins(status_document(connection, sample.api.settings, utc_now()))
    moving = {"timestamp", "automation", "progress"}
    assert {name: answer[name] for name in answer if name not in moving} == {
        name: part for name, part in expected.items() if name not in moving
    }
    assert sample.get("/api/admin/training/models").body == {"success": True, "models": answer["models"]}


def test_metrics_are_the_figures_of_the_status(sample: AdminServer, read_sample: Database) -> None:
    add_version(read_sample, "v1.0.0")
    job = sample.post(TRIGGER).body["jobId"]
    with urllib.request.urlopen(f"{sample.url}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=")
        text = answer.read().decode()
    found = sample.get(STATUS).body
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    expected = {
        "babylon_trajectories": found["trajectoryStats"]["_count"],
        "babylon_trajectories_last_day": found["automation"]["dataCollection"]["last24h"],
        "babylon_ready": found["readiness"]["ready"],
        "babylon_freezable_trajectories": found["readiness"]["stats"]["totalTrajectories"],
        "babylon_training_fraction": found["progress"]["fraction"],
        f'babylon_newest_job{{batch="{job}",status="pending"}}': 1,
        'babylon_healthy{part="daemon"}': found["automation"]["health"]["daemon"],
        "babylon_judge_spent_today_usd": found["judge"]["spentTodayUsd"],
    }
    assert {name: float(samples[name]) for name in expected} == {name: float(value) for name, value in expected.items()}
    assert "babylon_training_loss" not in samples  # nothing has trained yet
    for name, number in found["readiness"]["notTrainable"].items():
        assert samples[f'babylon_not_trainable_trajectories{{reason="{name}"}}'] == str(float(number))


def test_the_hours_agree_with_the_database(sample: AdminServer, read_sample: Database) -> None:
    answer = sample.get("/api/admin/training-data").body
    data = answer["data"]
    stored = rows(
        read_sample,
        'SELECT w."window", w."eligible", w."avgPnl", w."usableEpisodes" >= 5 AS ready, avg(e."steps")::float8 AS steps'
        ' FROM babylon_rl.windows w LEFT JOIN babylon_rl.episodes e USING ("window") WHERE w."window" >= (SELECT to_char(max('
        "\"window\")::timestamp - interval '167 hours', 'YYYY-MM-DD\"T\"HH24:MI') FROM babylon_rl.windows)"
        ' GROUP BY w."window" ORDER BY 1 DESC',
    )
    hours = [
        {"windowId": row["window"], "trajectoryCount": row["eligible"], "avgSteps": row["steps"], "avgPnl": row["avgPnl"]} for row in stored
    ]
    assert answer["success"] is True and data["windows"] == hours and len(hours) > 3
    assert data["readyWindows"] == [hour for hour, row in zip(hours, stored, strict=True) if row["ready"]]
    total = sum(hour["trajectoryCount"] for hour in hours)
    counts = {"totalWindows": len(hours), "readyWindows": len(data["readyWindows"]), "minAgentsRequired": 5, "totalTrajectories": total}
    assert data["summary"] == counts
    # Of the newest hours alone, as no index leads to the newest rows of all.
    newest = rows(
        read_sample,
        'SELECT * FROM trajectories WHERE "windowId" >= (SELECT min("windowId") FROM (SELECT "windowId" FROM trajectories WHERE "windowId"'
        ' < \'A\' ORDER BY 1 DESC LIMIT 10) h) AND "windowId" < \'A\' ORDER BY "createdAt" DESC, "trajectoryId" DESC LIMIT 10',
    )
    names = (
        "trajectoryId", "agentId", "windowId", "startTime", "episodeLength", "totalReward", "finalPnL", "finalStatus", "createdAt",
    )  # fmt: skip
    assert data["recentTrajectories"] == [{name: shown(row[name]) for name in names} for row in newest] and len(newest) == 10
    assert [data["qualityMetrics"]] == rows(read_sample, QUALITY)
    assert set(data) == {"summary", "windows", "readyWindows", "recentTrajectories", "qualityMetrics"}


def test_a_trigger_freezes_a_batch_and_launches_its_run(sample: AdminServer, read_sample: Database, dagster: DagsterStandIn) -> None:
    assert sample.get(TRIGGER).body["ready"] is True
    answer = sample.post(TRIGGER, {"batchSize": 40})
    assert (answer.status, answer.body["success"]) == (200, True)
    (batch,) = rows(read_sample, "SELECT * FROM babylon_rl.batches")
    held = rows(read_sample, 'SELECT * FROM babylon_rl.batch_items WHERE "live"')
    assert answer.body["jobId"] == batch["batchId"] and 0 < len(held) <= 40
    assert dagster.partitions == [batch["batchId"]]
    assert dagster.launched == [("train", {"dagster/partition": batch["batchId"]})]


def test_a_second_trigger_waits_for_force(sample: AdminServer, read_sample: Database, dagster: DagsterStandIn) -> None:
    first = sample.post(TRIGGER, {"batchSize": 40}).body["jobId"]
    refused = sample.post(TRIGGER)
    assert refused.status == 409 and refused.body["success"] is False and first in refused.body["error"]
    second = sample.post(TRIGGER, {"force": True, "batchSize": 40}).body["jobId"]
    assert [tags["dagster/partition"] for _, tags in dagster.launched] == [first, second]
    twice = rows(read_sample, 'SELECT "trajectoryId" FROM babylon_rl.batch_items WHERE "live" GROUP BY 1 HAVING count(*) > 1')
    assert first != second and not twice


def test_of_two_triggers_at_once_one_is_refused(sample: AdminServer, read_sample: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: sample.post(TRIGGER, {"batchSize": 40}), range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    assert len(rows(read_sample, "SELECT * FROM babylon_rl.batches")) == 1


def test_a_trigger_says_why_it_is_not_ready(admin: AdminServer, database: Database) -> None:
    answer = admin.post(TRIGGER)
    assert (answer.status, answer.body["error"]) == (409, "Need 1000 more trajectories")
    assert admin.post(TRIGGER, {"force": True}).status == 409  # there is nothing at all
    assert rows(database, "SELECT * FROM babylon_rl.batches") == []


def test_without_dagster_nothing_is_frozen(settings: Settings, read_sample: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = settings.model_copy(update=EASY | {"dagster_url": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        with running_admin(away, read_sample) as server:
            answer = server.post(TRIGGER)
    assert answer.status == 503 and "babylon-rl dev" in answer.body["error"]
    assert rows(read_sample, "SELECT * FROM babylon_rl.batches") == []


def test_a_fault_of_dagster_is_said_in_its_own_words(sample: AdminServer, read_sample: Database, dagster: DagsterStandIn) -> None:
    dagster.fault = "its storage is locked"
    answer = sample.post(TRIGGER)
    assert answer.status == 503 and "(it failed: its storage is locked)" in answer.body["error"]
    assert rows(read_sample, "SELECT * FROM babylon_rl.batches") == []


def test_a_batch_whose_launch_fails_is_left_to_the_sensor(sample: AdminServer, read_sample: Database, dagster: DagsterStandIn) -> None:
    dagster.refuses_launches = True
    answer = sample.post(TRIGGER)
    assert (answer.status, answer.body["runId"]) == (200, None) and "start_training" in answer.body["message"]
    assert [row["state"] for row in rows(read_sample, "SELECT * FROM babylon_rl.batches")] == ["pending"]


def test_triggers_are_limited_in_rate(settings: Settings, database: Database) -> None:
    with running_admin(settings, database, starts_a_minute=2, clock=lambda: 0.0) as server:
        answers = [server.post(TRIGGER) for _ in range(3)]
        assert [answer.status for answer in answers] == [409, 409, 429]
        assert int(answers[2].headers["retry-after"]) >= 1
        assert server.get(STATUS).status == 200


def test_the_hourly_check_scores_what_settled(sample: AdminServer, dagster: DagsterStandIn) -> None:
    answer = sample.get("/api/cron/training-check").body
    assert answer["success"] is True and answer["duration"] >= 0 and set(answer["status"]) == set(sample.get(STATUS).body["automation"])
    assert {job for job, _ in dagster.launched} == {"score"} and len(answer["scoring"]["runIds"]) == len(dagster.launched)
    assert answer["scoring"]["hours"] >= len(dagster.launched) > 0
    assert answer["readiness"] == sample.get(TRIGGER).body
    again = sample.get("/api/cron/training-check").body["scoring"]
    assert again["message"] == "A run scores hours now." and len(dagster.launched) == len(answer["scoring"]["runIds"])


def test_the_daily_start_trains_once(sample: AdminServer, dagster: DagsterStandIn) -> None:
    first = sample.get("/api/cron/training").body
    second = sample.get("/api/cron/training").body
    assert first["success"] is True and first["jobId"] == dagster.launched[0][1]["dagster/partition"]
    assert (second["success"], second["jobId"], len(dagster.launched)) == (True, None, 1) and first["jobId"] in second["message"]


def test_a_deployment_beside_a_pinned_version_that_is_not_there_says_that_it_is_done(settings: Settings, database: Database) -> None:
    add_version(database, "v1.0.0", "ready")
    with psycopg.connect(database.url) as connection:
        insert_calls(connection, None, utc_now(), ["agent-1"])
    with running_admin(settings.model_copy(update={"rl_model_version": "v9.9.9"}), database) as admin:
        answer = admin.post(DEPLOY, {"modelVersion": "v1.0.0", "strategy": "immediate"})
    assert (answer.status, answer.body["state"], answer.body["agentsUpdated"]) == (200, "released", 0)


def test_deploying_and_rolling_back_move_agents(admin: AdminServer, database: Database) -> None:
    for version in ("v1.0.0", "v1.0.1"):
        add_version(database, version, "ready")
    with psycopg.connect(database.url) as connection:
        insert_calls(connection, None, utc_now(), [f"agent-{number}" for number in range(20)])
    first = admin.post(DEPLOY, {"modelVersion": "v1.0.0", "strategy": "immediate"}).body
    assert (first["success"], first["agentsUpdated"], first["state"], first["previousVersion"]) == (True, 20, "released", None)
    tried = admin.post(DEPLOY, {"modelVersion": "v1.0.1", "strategy": "test", "agentIds": ["agent-3"]}).body
    assert (tried["strategy"], tried["percentage"]) == ("test", 0)
    gradual = admin.post(DEPLOY, {"modelVersion": "v1.0.1"}).body
    assert (gradual["strategy"], gradual["percentage"], gradual["deploymentId"]) == ("gradual", 10, tried["deploymentId"])
    stored = rows(database, f'SELECT * FROM babylon_rl.rollouts WHERE "rolloutId" = {int(gradual["deploymentId"])}')
    assert [(row["version"], row["state"], row["percentage"]) for row in stored] == [("v1.0.1", "rolling", 10)]
    back = admin.post(ROLLBACK).body
    assert (back["version"], back["state"]) == ("v1.0.1", "rolled_back")
    base = admin.post(ROLLBACK, {"targetVersion": "base"}).body
    assert (base["version"], base["agentsUpdated"]) == ("v1.0.0", 0)  # their last calls were answered by the base
    events = rows(database, 'SELECT "who" FROM babylon_rl.rollout_events')
    assert {event["who"] for event in events} == {"api: this machine"}


def test_what_the_state_forbids_is_refused_with_its_reason(admin: AdminServer, database: Database) -> None:
    missing = admin.post(DEPLOY, {"modelVersion": "v9.9.9"})
    assert (missing.status, missing.body["success"]) == (409, False) and "There is no version v9.9.9" in missing.body["error"]
    assert admin.post(ROLLBACK).status == 409
    add_version(database, "v1.0.0", "ready")
    assert admin.post(DEPLOY, {"modelVersion": "v1.0.0", "strategy": "test"}).status == 400


def metadata(file: Path, parent: str = "v1.0.0", **more: Any) -> dict[str, Any]:
    return {"parent": parent, "sha256": sha256(file), **more}


@pytest.fixture
def weights(tmp_path: Path, make_version: MakeVersion) -> Path:
    """Weights that can be uploaded: a child of v1.0.0, which is registered."""
    make_version("v1.0.0")
    write_tensors(tmp_path / "weights", 9.0)
    return tmp_path / "weights"


def test_an_upload_becomes_a_version_that_can_be_deployed(admin: AdminServer, settings: Settings, weights: Path) -> None:
    answer = admin.upload(weights.read_bytes(), "v1.0.1", metadata(weights, notes={"trained": "elsewhere"}))
    assert answer.status == 200, answer.body
    model = answer.body["model"]
    assert (model["version"], model["parent"], model["status"], model["foreign"]) == ("v1.0.1", "v1.0.0", "ready", False)
    checkpoint = settings.home / "checkpoints" / "v1.0.1"
    manifest = verify(checkpoint)
    assert (checkpoint / "adapter_model.safetensors").read_bytes() == weights.read_bytes()
    assert manifest.base == load_manifest(settings.home / "checkpoints" / "v1.0.0").base and manifest.parent == "v1.0.0"
    assert admin.post(DEPLOY, {"modelVersion": "v1.0.1", "strategy": "immediate"}).body["state"] == "released"
    again = admin.upload(weights.read_bytes(), "v1.0.1", metadata(weights))
    assert again.status == 409 and "never replaced" in again.body["error"]
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["v1.0.0", "v1.0.1"]  # nothing half received is left


def test_uploads_that_are_not_such_weights_are_refused(
    admin: AdminServer, make_version: MakeVersion, settings: Settings, tmp_path: Path
) -> None:
    make_version("v1.0.0")
    good, pickle, wide = tmp_path / "good", tmp_path / "pickle", tmp_path / "wide"
    write_tensors(good, 9.0)
    pickle.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07weights\x94.")
    write_tensors(wide, 1.0, 2.0)
    broken = tmp_path / "broken"
    write_tensors(broken, float("nan"))
    huge_head = tmp_path / "head"
    huge_head.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    cases = [
        (pickle, "v1.0.1", metadata(pickle), 400, "Only safetensors"),
        (huge_head, "v1.0.1", metadata(huge_head), 400, "Only safetensors"),
        (wide, "v1.0.1", metadata(wide), 400, "shape"),
        (broken, "v1.0.1", metadata(broken), 400, "w has 1 of 1 numbers that are NaN or infinite"),
        (good, "v1.0.1", metadata(wide), 400, "sha256"),
        (good, "v1.0.1", metadata(good, parent="v7.0.0"), 400, "not known"),
        (good, "v1.0.0", metadata(good), 400, "not above"),
        (good, "../v1.0.1", metadata(good), 400, "no version"),
        (good, "v99999999999999999999.0.0", metadata(good), 400, "no version"),
        (good, "v1.0.1000000000", metadata(good), 400, "no version"),
        (good, "v1.0.1", f'{{"parent": {"[" * 970 + "]" * 970}}}', 400, "nested"),
        (good, "v1.0.1", "{", 400, "metadata"),
        (good, "v1.0.1", metadata(good) | {"sha256": "x"}, 400, "metadata"),
    ]
    for file, version, facts, status, words in cases:
        answer = admin.upload(file.read_bytes(), version, facts)
        assert (answer.status, answer.body["success"]) == (status, False) and words in answer.body["error"], answer.body
    assert [path.name for path in (settings.home / "checkpoints").iterdir()] == ["v1.0.0"]
    assert len(admin.get("/api/admin/training/models").body["models"]) == 1


def test_an_upload_to_a_slow_storage_holds_no_lock_and_one_that_is_down_is_503(
    settings: Settings, database: Database, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile: list[Callable[[], None]] = []
    put_file = MemoryFileSystem.put_file

    def put(*arguments: Any, **more: Any) -> None:
        meanwhile[-1]()
        put_file(*arguments, **more)

    def down() -> None:
        raise OSError("no route to host")

    def others_register() -> None:
        with connect(database.url) as other:
            other.execute("SET lock_timeout = '1s'")
            other.take_lock(REGISTRY_LOCK)
        meanwhile[-1] = lambda: None

    def is_taken() -> None:
        add_version(database, "v1.0.2", "ready")
        meanwhile[-1] = lambda: None

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    stored = settings.model_copy(update={"model_storage_url": "memory://models"})
    with running_admin(stored, database, starts_a_minute=1000) as server:
        for version, happens, status, words in [
            ("v1.0.1", down, 503, "no route to host"),
            ("v1.0.1", others_register, 200, ""),
            ("v1.0.2", is_taken, 409, "registered already"),
        ]:
            meanwhile.append(happens)
            answer = server.upload(weights.read_bytes(), version, metadata(weights))
            assert (answer.status, words in str(answer.body)) == (status, True), answer.body
    assert sorted(path.name for path in (settings.home / "checkpoints").iterdir()) == ["v1.0.0", "v1.0.1"]
    (uploaded,) = rows(database, """SELECT "uploadedUrl", "manifestSha" FROM babylon_rl.model_lineage WHERE "version" = 'v1.0.1'""")
    manifest_sha = hashlib.sha256(MemoryFileSystem().cat_file("/models/v1.0.1/manifest.json")).hexdigest()
    assert uploaded == {"uploadedUrl": f"memory://models/{content_folder('v1.0.1', manifest_sha)}", "manifestSha": manifest_sha}


# A producer that does not ask for the registry's lock, at the last moment: while the upload registers its row.
_TAKES_THE_NUMBER = """
CREATE FUNCTION take_number() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.id <> 'other' THEN
        INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", "updatedAt")
        VALUES ('other', NEW."modelId", NEW.version, 'x', 'x', now());
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER take_number BEFORE INSERT ON trained_models FOR EACH ROW EXECUTE FUNCTION take_number();
"""


def test_a_number_that_is_taken_while_an_upload_registers_refuses_it(admin: AdminServer, database: Database, weights: Path) -> None:
    with connect(database.url) as connection:
        connection.execute(_TAKES_THE_NUMBER)
        connection.commit()
    answer = admin.upload(weights.read_bytes(), "v1.0.1", metadata(weights))
    assert answer.status == 409 and "v1.0.1 is registered already" in answer.body["error"]
    with connect(database.url) as connection:
        connection.execute("DROP TRIGGER take_number ON trained_models")
        connection.commit()
    assert admin.upload(weights.read_bytes(), "v1.0.1", metadata(weights)).status == 200


def test_an_upload_is_limited_in_size(settings: Settings, database: Database) -> None:
    with running_admin(settings.model_copy(update={"upload_limit_mb": 1}), database) as server:
        too_large = server.upload(bytes(1024**2 + 1), "v1.0.1", {"parent": "v1.0.0", "sha256": "0" * 64})
        assert (too_large.status, too_large.body["code"]) == (413, "body_too_large")
        assert server.post("/api/admin/training/upload-model", {}).status == 415


def test_a_key_opens_it_to_its_holder_alone(admin: AdminServer, database: Database) -> None:
    assert admin.get(STATUS).status == 200  # this machine, without keys
    assert admin.get(STATUS, x_forwarded_for="203.0.113.9").status == 403
    assert admin.get(STATUS, sec_fetch_site="cross-site").status == 403
    with connect(database.url) as connection:
        create_key(connection, ClientKey("dashboard", key_hash("secret"), None, None, utc_now(), admin=True))
        create_key(connection, ClientKey("agent", key_hash("gateway only"), None, None, utc_now()))
    wait_for(lambda: admin.get(STATUS).status == 401, "the key to be known")
    wait_for(lambda: admin.get(STATUS, authorization="Bearer gateway only").body.get("code") == "not_admin", "the agent's key to be known")
    assert admin.post(DEPLOY, {"modelVersion": "v1.0.0"}, authorization="Bearer gateway only").status == 403
    assert admin.get(STATUS, authorization="Bearer wrong").status == 401
    assert admin.get(STATUS, authorization="Bearer secret").status == 200
    assert admin.post(DEPLOY, {"modelVersion": "v1.0.0"}).status == 401
    assert [admin.get(path).status for path in ("/", "/openapi.json")] == [200, 200]
    assert admin.get("/api/cron/training").status == 200  # CRON_SECRET is another matter


def test_the_cron_endpoints_take_their_secret_alone(settings: Settings, database: Database) -> None:
    with running_admin(settings.model_copy(update={"cron_secret": SecretStr("cron")}), database) as server:
        for path in ("/api/cron/training", "/api/cron/training-check"):
            assert [server.get(path).status, server.get(path, authorization="Bearer x").status] == [401, 401]
            assert server.get(path, authorization="Bearer cron").status == 200
        assert server.get(STATUS, authorization="Bearer cron").status == 200  # this machine, without keys


def test_bad_bodies_are_refused_in_words(admin: AdminServer) -> None:
    bad = [b"{", b"[]", b"\xff", b'{"force": 1}', b'{"batchSize": 0}', b'{"other": 1}', b"[" * 100_000, b"[" * 970 + b"]" * 970, b"null"]
    for body in bad:
        answer = admin.post(TRIGGER, body)
        assert (answer.status, answer.body["success"], answer.body["code"]) == (
            400,
            False,
            "invalid_json" if len(body) > 1000 else "invalid_body",
        ), body
    assert admin.post(TRIGGER, b"{}", content_type="text/plain").status == 415
    assert admin.post(TRIGGER, b" " * 300_000).status == 413
    for body in ({}, {"modelVersion": ""}, {"modelVersion": "v1", "strategy": "all"}, {"modelVersion": "v1", "rolloutPercentage": 101}):
        assert admin.post(DEPLOY, body).status == 400
    unknown = admin.get("/api/admin/nothing")
    assert (unknown.status, unknown.body["success"]) == (404, False)
    wrong = admin.post(STATUS)
    assert wrong.status == 405 and "GET" in wrong.headers["allow"]


def test_a_database_that_is_away_is_a_503(admin: AdminServer, database: Database, server: str) -> None:
    name = database.url.rpartition("/")[2]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name])
        answer = admin.get(STATUS)
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (answer.status, answer.body["success"]) == (503, False)
    assert admin.get(STATUS).status == 200


def test_the_index_names_every_path(admin: AdminServer) -> None:
    index = admin.get("/").body
    document = admin.get("/openapi.json").body
    assert index["paths"] == sorted(document["paths"]) and document["openapi"] == "3.1.0"
    assert set(document["paths"][TRIGGER]) == {"get", "post"}
    json.dumps(document)


@pytest.mark.long
def test_requests_generated_from_the_document_are_answered_as_it_says(settings: Settings, database: Database) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as hypothesis_settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    add_version(database, "v1.0.0", "ready")
    with connect(database.url) as connection:
        create_key(connection, ClientKey("fuzz", key_hash("secret"), None, None, utc_now(), admin=True))
    settings = settings.model_copy(update={"cron_secret": SecretStr("secret")})
    checked = set()
    with running_admin(settings, database, starts_a_minute=100_000) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()
            checked.add(operation.label)

            @hypothesis_settings(
                max_examples=20, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                # Rules across fields (agentIds with the strategy test) are in no schema, so data that fits it may be refused.
                case.call_and_validate(headers={"Authorization": "Bearer secret"}, excluded_checks=[positive_data_acceptance])

            check()
    assert len(checked) == 11


def test_a_client_that_vanishes_leaves_it_serving(admin: AdminServer) -> None:
    host, port = admin.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST {TRIGGER} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        client.sendall(head.encode())
    with pytest.raises(urllib.error.URLError), socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        AdminServer(f"http://127.0.0.1:{nobody.getsockname()[1]}", admin.api).get("/")
    assert admin.get(STATUS).status == 200
