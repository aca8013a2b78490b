"""``judge report``: one screen for people, one document for scripts, pictures where one asks for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl.cli import run
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.judge.model_judge import MODEL, NOW, asking, filled
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scored import score_windows

pytestmark = pytest.mark.slow

FIELDS = {"selfAgreement", "positionBias", "lengthBias", "auditAgreement", "pnlCorrelation", "marketAgreement", "tokens", "usd", "groups"}


@pytest.mark.long
def test_the_report_is_a_screen_a_document_and_pictures(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", database.url)
    assert run(["judge", "report"]) == 2
    assert "No hour has scores yet" in capsys.readouterr().err
    with judging() as judge:
        chosen = asking(settings, judge.url, judge_audit_model="openai/second")
        windows = filled(database, 3)
        with database.connect(autocommit=True) as connection:
            sync_windows(connection, windows, chosen, NOW)
            score_windows(connection, windows, chosen, NOW)
        for name in ("judge_model", "judge_base_url", "judge_audit_model"):
            monkeypatch.setenv(name.upper(), getattr(chosen, name))
        assert run(["judge", "report", "--json", "--audit-groups", "2", "--plots", str(tmp_path / "pictures")]) == 0
        told = capsys.readouterr()
    document = json.loads(told.out)
    assert document.keys() >= FIELDS and (document["judge"], document["groups"]) == (MODEL, 3)
    assert (document["auditAgreement"]["groups"], document["to"]) == (2, "2025-11-15T13:00")
    assert "openai/second was asked about 2 groups: 4 answers asked for" in told.err
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        f"judge-report-{name}.png" for name in ("agreement", "cost", "pnl", "position")
    ]
    assert sorted(document["plots"]) == sorted(str(path) for path in (tmp_path / "pictures").iterdir())

    assert run(["judge", "report", "--from", windows[0], "--to", windows[2], "--audit-groups", "0"]) == 0
    shown = capsys.readouterr().out
    assert f"{MODEL} (" in shown and f"{windows[0]} to {windows[2]}" in shown
    for what in ("groups", "orders differ by", "position bias", "length bias", "with the hour's P&L", "second judge", "cost"):
        assert what in shown, what


def test_the_report_does_without_the_library_whose_import_took_longer_than_the_report(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    windows = filled(database, 3)
    with judging() as judge, database.connect(autocommit=True) as connection:
        chosen = asking(settings, judge.url)
        sync_windows(connection, windows, chosen, NOW)
        score_windows(connection, windows, chosen, NOW)
    program = (
        "import sys\nfrom babylon_rl.cli import run\n"
        "assert run(['judge', 'report', '--json']) == 0\nassert 'scipy.stats' not in sys.modules"
    )
    environment = os.environ | {"BABYLON_RL_HOME": str(tmp_path / "home"), "DATABASE_URL": database.url}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["positionBias"]["low"] is not None


def test_half_a_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "report", "--from", "2025-11-15T10:00"]) == 2
    assert "belong together" in capsys.readouterr().err
