"""Names of versions, hours, agents and trajectories that are paths or SQL: they name nothing, and are data wherever they are stored."""

from pathlib import Path

import openai
import pytest

from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.models.checkpoint_store import checkpoint_to_serve
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.registry import version_order
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.training.export import export_windows
from babylon_rl.training.export.hours import Selection, Splits
from babylon_rl.windows import is_window_id
from babylon_rl_tests.rows import insert, make_trajectory
from babylon_rl_tests.serving.admin_server import running_admin
from babylon_rl_tests.serving.gateways import MESSAGES, running_gateway

DROP = "'; DROP TABLE trajectories; --"
VERSIONS = (
    "../../etc", "/etc/passwd", "..", ".", "", "~root", "v1.0.0/../../outside", f"v1.0.0{DROP}", "v1.0.0\n", "v1.0.0 ", " v1.0.0",
    "v1.0.0\0.txt",    "%2e%2e%2foutside", "v١.٠.٠", "v1.0.0\u202e", "v1.0", "v01.0.0", "v1.0.1000000000",
    "C:\\windows", "file:///etc/passwd", "v" + "1" * 100_000 + ".0.0",
)  # fmt: skip
WINDOWS = (
    "../../outside", "/etc/passwd", f"2025-11-15T10:00{DROP}", "2025-11-15T10:00\n", "2025-11-15T10:00/..", "٢٠٢٥-11-15T10:00",
    "2025-11-15T24:00",    "2025-02-30T10:00", "2025-11-15t10:00", "2025-11-15T10:00Z", "99999-01-01T00:00", "",
)  # fmt: skip


def test_only_three_numbers_are_a_version_and_only_an_hour_is_a_window() -> None:
    assert [name for name in VERSIONS if version_order(name) is not None] == []
    assert [name for name in WINDOWS if is_window_id(name)] == []


@pytest.mark.parametrize("name", VERSIONS)
def test_a_name_of_a_request_leads_to_no_directory_but_a_version_s(settings: Settings, tmp_path: Path, name: str) -> None:
    (settings.home / "checkpoints" / "v1.0.0").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for storage in (None, f"file://{tmp_path}"):
        assert checkpoint_to_serve(name, settings.model_copy(update={"model_storage_url": storage})) is None


def test_the_gateway_and_the_admin_api_refuse_such_versions_and_change_nothing(settings: Settings, database: Database) -> None:
    with running_gateway(settings, database) as gateway, running_admin(settings, database) as admin:
        # No name at all leaves the choice to the gateway.
        for name in filter(None, VERSIONS[:-1]):
            with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
                gateway.client().chat.completions.create(model=name, messages=MESSAGES)
            for path in ("deploy", "rollback"):
                answer = admin.post(f"/api/admin/training/{path}", {"modelVersion": name, "version": name, "strategy": "immediate"})
                assert 400 <= answer.status < 500, (name, path, answer)
    with database.connect() as connection:
        assert connection.value("SELECT count(*) FROM trajectories") == 0
        assert connection.value("SELECT count(*) FROM babylon_rl.rollouts") == 0


def test_rows_with_such_names_are_read_judged_and_exported_as_data(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    names = [name.replace("\0", "") for name in (*VERSIONS[:-1], *WINDOWS) if name]
    rows = [
        make_trajectory(f"t-{number}-{name}", f"{name}{number}", minute=number % 50, windowId=name, scenarioId=name)
        for number, name in enumerate(names)
    ]
    insert(connection, "trajectories", rows)
    windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
    assert windows == ["2025-11-15T10:00"], "a row whose id is no hour is of the hour in which it began"
    readings = read_windows(connection, windows, settings)
    (group,) = render_groups(connection, readings, settings).values()
    assert {one.agent_id for one in group.episodes} == {f"{name}{number}" for number, name in enumerate(names)}
    assert connection.value("SELECT count(*) FROM trajectories") == len(names)
    connection.commit()
    out = tmp_path / "out"
    everything = Selection(everything=True)
    export_windows(connection, windows, str(out), "archive", settings, splits=Splits(1.0, 0.0, 0), selection=everything)
    assert {path.name for path in tmp_path.iterdir()} <= {"out", settings.home.name}
