"""A comparison has one interval wherever it stands, and a version stands beside what matters: every surface on one set of results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.cli.demo import verdict
from babylon_rl.evaluation.benchmark import evaluate_batch, gate_rows, record_release, sources_named
from babylon_rl.evaluation.compare_results import sound_results
from babylon_rl.evaluation.gate import BASE
from babylon_rl.evaluation.html_report.page import summarized
from babylon_rl.evaluation.leaderboard import leaderboard, markdown
from babylon_rl.evaluation.report import ceiling_words, demo_columns, stored_standing
from babylon_rl.evaluation.results import runs_directory
from babylon_rl.evaluation.snapshots import confirmation_snapshots
from babylon_rl.serving.admin_page.views import lineage
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl.types import BenchmarkReport
from babylon_rl_tests.evaluation.conftest import NOW, MakeVersion
from babylon_rl_tests.evaluation.endpoint import alternates, endpoint, reads_news

pytestmark = pytest.mark.slow

VERSION, MARKETS, CONFIRMED = "v1.0.0", 12, 3


@dataclass
class Surfaces:
    """The commands' output on a database in which a version was compared with the base, and confirmed in other markets."""

    report: BenchmarkReport
    connection: Connection
    settings: Settings
    capsys: pytest.CaptureFixture[str]

    def document(self, *arguments: str) -> dict[str, Any]:
        """The JSON of a command."""
        made: dict[str, Any] = json.loads(self.text(*arguments, "--json"))
        return made

    def text(self, *arguments: str) -> str:
        """The table of a command, in one line."""
        self.capsys.readouterr()
        assert run(list(arguments)) == 0
        return " ".join(self.capsys.readouterr().out.split())

    @property
    def row(self) -> dict[str, Any]:
        """The version's row in the report."""
        return next(row for row in self.report.rows if row["model"] == VERSION)


@pytest.fixture
def surfaces(
    connection: Connection,
    database: Database,
    settings: Settings,
    make_version: MakeVersion,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Surfaces:
    batch = make_version(VERSION)
    scripts = '{"scripts": ["balanced", "contrarian"]}'
    connection.execute('UPDATE babylon_rl.batches SET "preflight" = %s', [scripts])
    connection.execute(
        'INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson")'
        " VALUES (%s, %s, 'tiny-base', %s, '[]', '[]')",
        [batch, batch, VERSION],
    )
    decided_at_once = settings.model_copy(update={"min_improvement": 1e6})
    with endpoint(base=alternates, **{VERSION: reads_news}) as served:
        report = evaluate_batch(connection, batch, decided_at_once, lambda line: None, clock=lambda: NOW, serving=served.serving)
        record_release(connection, batch, NOW)
        sources = sources_named([VERSION, BASE], {model.version: model for model in read_models(connection)}, settings)
        fresh = confirmation_snapshots(0, CONFIRMED)
        gate_rows(connection, settings, sources, fresh, lambda line: None, clock=lambda: NOW, serving=served.serving)
    connection.commit()
    for name, value in {
        "DATABASE_URL": database.url, "BABYLON_RL_HOME": settings.home, "LOCAL_BASE_MODEL": settings.local_base_model,
        "BENCHMARK_MARKETS": MARKETS,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return Surfaces(report, connection, settings, capsys)


def test_one_comparison_has_one_interval_on_every_surface(surfaces: Surfaces) -> None:
    row, connection = surfaces.row, surfaces.connection
    assert surfaces.report.markets == MARKETS
    expected = (row["improvement"], row["improvementLow"], row["improvementHigh"])
    contest = row["contests"][0]
    found = {"contest": (contest["difference"], contest["low"], contest["high"])}
    for name, command in {"standings": ("standings", VERSION, "base"), "leaderboard": ("leaderboard",)}.items():
        rows = {one["model"]: one for one in surfaces.document("benchmark", *command)["rows"]}
        found[name] = tuple(rows[VERSION][end] for end in ("improvement", "improvementLow", "improvementHigh"))
        assert (rows[VERSION]["winRate"], rows[VERSION]["accuracy"]) == (row["winRate"], row["accuracy"])
    files = [runs_directory(surfaces.settings.home, name) for name in (VERSION, "base")]
    gate = surfaces.document("benchmark", "compare", VERSION, "base", "--gate")
    own = [str(file) for directory in files for file in sorted(directory.glob("benchmark-*.json"))]
    for name, compared in {"--gate": gate, "files": surfaces.document("benchmark", "compare", *own)}.items():
        [pair] = compared["pairs"]
        assert pair["snapshots"] == MARKETS and compared["analyses"] == 3
        found[name] = tuple(pair["difference"][end] for end in ("mean", "low", "high"))
        agents = {one["agent"]: one for one in compared["agents"]}
        assert agents[VERSION]["winRate"] == pytest.approx(row["winRate"])
        assert agents[VERSION]["pnl"] == pytest.approx({"mean": row["pnl"], "low": row["low"], "high": row["high"]})
    sound, _ = sound_results(map(Path, own))
    difference = summarized(sound).differences[VERSION, "base"]
    found["page"] = (difference.interval.mean, difference.interval.low, difference.interval.high)
    [version] = lineage(read_models(connection), {})
    assert version.improvement is not None and version.measured["markets"] == MARKETS
    found["admin page"] = (version.improvement.mean, version.improvement.low, version.improvement.high)
    [status] = status_document(connection, surfaces.settings, NOW).lineage
    found["status"] = (status.improvement, status.improvement_low, status.improvement_high)
    for name, interval in found.items():
        assert interval == pytest.approx(expected, abs=1e-6), name

    mean, low, high = (f"{usd:+.0f}" for usd in expected)
    assert f"| {mean} [{low}, {high}] |" in surfaces.report.table_markdown and f"| {mean} [{low}, {high}] |" in markdown(
        leaderboard(connection, surfaces.settings)
    )
    assert f"{mean} [{low}, {high}] base {MARKETS} fail" in surfaces.text("models")
    cells = [column.cell(row) for column in demo_columns("base")]
    assert cells[3:5] == [mean, f"{low} to {high}"]
    assert f"{mean} ({low} to {high})" in surfaces.text("benchmark", "compare", VERSION, "base", "--gate")


def test_the_markets_of_a_confirmation_are_named_where_they_are_left_out(surfaces: Surfaces) -> None:
    surfaces.capsys.readouterr()
    assert run(["benchmark", "compare", VERSION, "base", "--gate"]) == 0
    told = surfaces.capsys.readouterr()
    assert f"{VERSION}: {CONFIRMED} markets of a confirmation are left out" in told.err
    assert f"{MARKETS} markets, mean P&L of one" in told.out and "corrected for the gate's 3 looks" in told.out


def test_a_version_is_held_against_doing_nothing_its_best_script_and_the_news_reader(surfaces: Surfaces) -> None:
    rows = {row["model"]: row for row in surfaces.report.rows}
    held = {rival["player"]: rival for rival in surfaces.row["standing"]}
    assert list(held) == ["nothing", "balanced", "news-reader"] and rows["balanced"]["pnl"] > rows["contrarian"]["pnl"]
    for player, rival in held.items():
        assert rival["difference"] == pytest.approx(surfaces.row["pnl"] - rows[player]["pnl"])
        assert rival["low"] < rival["difference"] < rival["high"]
    sentence = stored_standing(surfaces.row)
    assert (
        sentence.startswith(f"{VERSION} earns more than doing nothing (+")
        and "balanced, the best script that it learned from (" in sentence
    )
    assert f"the same {MARKETS} markets, paired 95 % intervals, corrected for 3 looks." in sentence
    assert sentence in surfaces.report.table_markdown and sentence in surfaces.text("models")
    shown = {"rows": surfaces.report.rows, "modelVersion": VERSION, "reference": "base", "reason": surfaces.report.reason}
    assert verdict(shown).splitlines()[1] == sentence


def test_expected_dollars_and_errors_of_a_version_are_the_same_on_every_surface(surfaces: Surfaces) -> None:
    row, sentence = surfaces.row, ceiling_words(surfaces.row)
    assert row["ofCeiling"] is not None and sentence.startswith(f"The decisions of {VERSION} bring {row['expected']:+.0f} dollars an hour")
    shown = {"rows": surfaces.report.rows, "modelVersion": VERSION, "reference": "base", "reason": surfaces.report.reason}
    assert verdict(shown).splitlines()[2] == sentence
    assert sentence in surfaces.report.table_markdown and sentence in surfaces.text("models")
    (stored,) = (line.row.document for line in leaderboard(surfaces.connection, surfaces.settings).lines if line.row.player == VERSION)
    assert stored["ofCeiling"] == pytest.approx(row["ofCeiling"])
    kinds = surfaces.document("benchmark", "errors", VERSION)["kinds"]
    assert [kind["name"] for kind in row["errors"]] == [kind["name"] for kind in kinds]
    for own, kind in zip(row["errors"], kinds, strict=True):
        assert {name: value for name, value in own.items() if name != "name"} == pytest.approx(
            {name: value for name, value in kind.items() if name != "name"}
        )
    reports = next(kind for kind in kinds if kind["name"] == "stock report")
    line = f"| stock report | {reports['decisions']} | {reports['follows']:.0%} |"
    assert f"Answers of {VERSION} by kind of headline:" in surfaces.report.table_markdown and line in surfaces.report.table_markdown
    assert sum(kind["usd"] * kind["decisions"] for kind in kinds) / MARKETS == pytest.approx(row["expected"])


def test_reports_point_to_what_the_markets_were_fitted_to(surfaces: Surfaces) -> None:
    page = surfaces.settings.home / "page"
    surfaces.text("benchmark", "compare", VERSION, "base", "--gate", "--report", str(page))
    html, board = (page / "index.html").read_text(), markdown(leaderboard(surfaces.connection, surfaces.settings))
    for text in (html, board, surfaces.report.table_markdown):
        assert "docs/evidence/market-fit.md" in text
    assert f"{VERSION} is not compared with doing nothing, which did not play; is not compared with a script" in html
