"""A batch from its checkpoint to its release, on a real database and a real endpoint."""

from datetime import timedelta
from threading import Event
from typing import Any

import pytest

from babylon_rl.cli.demo_stages import Demo, standings
from babylon_rl.errors import MarketError, ModelUnavailable, TrainingError, UsageError
from babylon_rl.evaluation.benchmark import evaluate_batch, record_release
from babylon_rl.evaluation.gate import FEWEST_MARKETS, kept_check
from babylon_rl.evaluation.snapshots import FRESH_HOURS as HOURS
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.connection import Connection
from babylon_rl.types import BenchmarkReport
from babylon_rl_tests.evaluation.conftest import NOW, simulated, write_tensors
from babylon_rl_tests.evaluation.endpoint import (
    Endpoint,
    alternates,
    always_buy,
    babble,
    endpoint,
    hold,
    noise,
    reads_fresh,
    reads_news,
    reads_wrongly,
)

pytestmark = pytest.mark.slow

MARKETS = 12
TOO_MUCH = 1e6  # dollars an hour that nobody earns more: decided at the first look
TICKS = benchmark_snapshots(1)[0].scenario.ticks


class Evaluation:
    """``evaluate(batch, served)``: one run of the benchmark; its sentences lie in ``evaluate.said``, its progress in ``evaluate.told``.

    Once ``breaks_at`` markets are stored, the endpoint refuses, and ``broken`` is set.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self.said: list[str] = []
        self.told: list[tuple[str, int, int]] = []
        self.breaks_at: int | None = None
        self.broken = Event()

    def __call__(self, batch: str, served: Endpoint, **changes: Any) -> BenchmarkReport:
        self.said.clear()
        self.told.clear()

        def on_progress(*told: Any) -> None:
            self.told.append(told)
            # Both models tell once before they play.
            if sum(done > 0 for _, done, _ in self.told) == self.breaks_at:
                served.breaks_after = 0
                self.broken.set()

        return evaluate_batch(
            self.connection,
            batch,
            self.settings.model_copy(update=changes),
            self.said.append,
            clock=lambda: NOW,
            serving=served.serving,
            on_progress=on_progress,
        )


@pytest.fixture
def evaluate(connection: Connection, settings: Settings) -> Evaluation:
    return Evaluation(connection, settings)


def rows(report) -> dict:
    return {row["model"]: row for row in report.rows}


@pytest.mark.long
def test_a_better_checkpoint_passes_and_is_recorded(evaluate, make_version, connection, settings):
    batch = make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        report = evaluate(batch, served)
    assert (report.version, report.reference, report.decision, report.markets) == ("v1.0.0", "base", "pass", FEWEST_MARKETS)
    assert served.asked == {"base": TICKS * FEWEST_MARKETS, "v1.0.0": TICKS * FEWEST_MARKETS}
    assert served.temperatures == {0.0}
    told = [told for told in evaluate.told if told[0] == "benchmark of base"]  # beside those of v1.0.0, which plays at the same time
    assert told[-24:] == [("benchmark of base", done, FEWEST_MARKETS) for done in range(25, FEWEST_MARKETS + 1)]
    found = rows(report)
    assert list(found) == ["v1.0.0", "base", *NAMES, "best-by-prompt"]
    best = found["v1.0.0"]
    assert best["improvementLow"] > 0 and best["low"] <= best["pnl"] <= best["high"] and best["accuracy"] > 0.6
    assert best["improvement"] == pytest.approx(best["pnl"] - found["base"]["pnl"])
    assert found["base"]["improvement"] is None
    # Of reports and rumours it follows all; the base trades without a view.
    assert found["base"]["ofCeiling"] < 0.1 and best["ofCeiling"] > 0.95 and found["best-by-prompt"]["ofCeiling"] == pytest.approx(1.0)
    assert best["expectedLow"] < best["expected"] < best["expectedHigh"]
    assert [contest["rival"] for contest in best["contests"]] == ["base", "nothing"]
    assert all(contest["low"] > 0 and contest["adjustedP"] < 0.05 for contest in best["contests"])
    assert {criterion["name"]: criterion["met"] for criterion in best["criteria"]} == {
        "10%+ better P&L": "yes", "better win rate": "yes", "fewer errors": "unknown", "better timing": "yes",
    }  # fmt: skip
    assert found["oracle"]["pnl"] > best["pnl"] > found["nothing"]["pnl"] == 0
    assert "no version is deployed" in report.reason
    picture = settings.home / "benchmarks" / "v1.0.0.png"
    assert report.plot_path == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 150_000
    assert report.table_markdown.startswith("**pass**: v1.0.0 earns") and "| nothing (strategy) |" in report.table_markdown
    assert "nothing is corrected for how many were tried in them" in report.table_markdown
    assert "The decisions of v1.0.0 bring +" in report.table_markdown and "| of the ceiling |" in report.table_markdown

    assert read_report(connection, batch) == report
    connection.execute(
        'INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson")'
        " VALUES (%s, %s, 'dry', 'v1.0.0', '[]', '[]')",
        [batch, batch],
    )
    release = record_release(connection, batch, NOW)
    assert (release.version, release.decision, release.reason) == ("v1.0.0", "pass", report.reason)
    score, accuracy, metrics, status = connection.execute(
        'SELECT "benchmarkScore", accuracy, "evalMetrics", status FROM trained_models WHERE version = %s', ["v1.0.0"]
    ).fetchone()
    assert (score, accuracy, status) == (best["pnl"], best["accuracy"], "ready")
    assert metrics["training"] == {"loss": 1}
    assert best["improvement"] > 0
    assert connection.execute('SELECT "policyImprovement" FROM training_batches').fetchall() == [(best["improvement"],)]
    assert [check["found"] for check in metrics["benchmark"]["checks"]] == ["pass"] * 6
    assert metrics["benchmark"]["improvementLow"] == best["improvementLow"] and metrics["benchmark"]["decision"] == "pass"
    decided = connection.execute('SELECT "version", "decision", "reportVersion" FROM babylon_rl.releases').fetchall()
    assert decided == [("v1.0.0", "pass", report.data_version)]


@pytest.mark.long
def test_a_second_run_asks_nothing_and_says_the_same(evaluate, make_version):
    batch = make_version("v1.0.0")
    with endpoint(base=hold, **{"v1.0.0": reads_news}) as served:
        first = evaluate(batch, served, min_improvement=TOO_MUCH)
        asked = dict(served.asked)
        again = evaluate(batch, served, min_improvement=TOO_MUCH)
    assert served.asked == asked and served.starts == 1
    assert again == first
    assert evaluate.told == []
    assert "v1.0.0: 12 of 12 markets are known" in evaluate.said


@pytest.mark.long
def test_a_later_batch_and_a_larger_benchmark_ask_only_what_is_new(evaluate, make_version):
    first, second = make_version("v1.0.0"), make_version("v1.0.1", parent="v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": alternates, "v1.0.1": reads_news}) as served:
        evaluate(first, served, benchmark_markets=12)
        assert served.asked == {"base": 12 * TICKS, "v1.0.0": 12 * TICKS}
        report = evaluate(second, served, benchmark_markets=14, min_improvement=TOO_MUCH)
    assert served.asked == {"base": 14 * TICKS, "v1.0.0": 14 * TICKS, "v1.0.1": 14 * TICKS}
    assert [row["role"] for row in report.rows[:3]] == ["candidate", "parent", "base"]
    assert report.reference == "base"


@pytest.mark.long
def test_an_interrupted_run_goes_on_where_it_was(evaluate, make_version, connection):
    def waits(prompt: str, markets: list[str]) -> str:
        evaluate.broken.wait(60)  # both models play at the same time: this one is still at it when the endpoint breaks
        return reads_news(prompt, markets)

    batch = make_version("v1.0.0")
    with endpoint(base=hold, **{"v1.0.0": waits}) as served:
        evaluate.breaks_at = 6
        with pytest.raises(ModelUnavailable, match="refused"):
            evaluate(batch, served, min_improvement=TOO_MUCH)
        kept = connection.execute("SELECT count(*) FROM babylon_rl.benchmark_results").fetchone()[0]
        assert 6 <= kept < 2 * MARKETS
        assert read_report(connection, batch) is None
        served.breaks_after, evaluate.breaks_at, served.asked = None, None, {}
        report = evaluate(batch, served, min_improvement=TOO_MUCH)
        assert sum(served.asked.values()) == (2 * MARKETS - kept) * TICKS
    with endpoint(base=hold, **{"v1.0.0": reads_news}) as fresh:
        assert evaluate(batch, fresh, min_improvement=TOO_MUCH).data_version == report.data_version
        assert fresh.asked == {}


@pytest.mark.long
def test_other_weights_are_played_anew(evaluate, make_version, base_dir):
    batch = make_version("v1.0.0")
    with endpoint(base=hold, **{"v1.0.0": reads_news}) as served:
        evaluate(batch, served, min_improvement=TOO_MUCH)
        write_tensors(base_dir / "model.safetensors", 1.0, 3.0)
        served.asked = {}
        evaluate(batch, served, min_improvement=TOO_MUCH)
    assert served.asked == {"base": TICKS * MARKETS, "v1.0.0": TICKS * MARKETS}


@pytest.mark.long
def test_the_reference_is_the_deployed_version(evaluate, make_version):
    make_version("v1.0.0", status="deployed")
    batch = make_version("v1.0.1", parent="v1.0.0")
    with endpoint(base=babble, **{"v1.0.0": reads_news, "v1.0.1": alternates}) as served:
        report = evaluate(batch, served)
    assert (report.reference, report.decision) == ("v1.0.0", "fail")
    assert [(row["model"], row["role"]) for row in report.rows[:3]] == [("v1.0.1", "candidate"), ("v1.0.0", "deployed"), ("base", "base")]
    assert rows(report)["base"]["invalid"] == TICKS * MARKETS and rows(report)["base"]["winRate"] is None


@pytest.mark.long
def test_a_deployed_version_that_is_not_here_leaves_the_base_and_says_so(evaluate, make_version, settings):
    make_version("v1.0.0", status="deployed")
    (settings.home / "checkpoints" / "v1.0.0").rename(settings.home / "elsewhere")
    batch = make_version("v1.0.1", parent="v1.0.0")
    with endpoint(base=alternates, **{"v1.0.1": reads_news}) as served:
        report = evaluate(batch, served, min_improvement=TOO_MUCH)
    assert (report.reference, report.decision) == ("base", "fail")
    assert "The reference is the base, as the deployed v1.0.0 could not be played here: its checkpoint" in report.reason


@pytest.mark.long
def test_without_a_deployed_version_the_reference_is_the_parent_that_passed(evaluate, make_version):
    first, second = make_version("v1.0.0"), make_version("v1.0.1", parent="v1.0.0")
    with endpoint(base=always_buy, **{"v1.0.0": reads_news, "v1.0.1": alternates}) as served:
        assert evaluate(first, served).decision == "pass"
        report = evaluate(second, served)
    assert (report.reference, report.decision) == ("v1.0.0", "fail")
    assert "The reference is v1.0.0, the newest ancestor that passed, as no version is deployed." in report.reason
    assert [row["role"] for row in report.rows[:3]] == ["candidate", "parent", "base"]
    assert [contest["rival"] for contest in report.rows[0]["contests"]] == ["v1.0.0", "base", "nothing"]


@pytest.mark.long
def test_a_parent_that_did_not_pass_gives_way_to_the_ancestor_that_did(evaluate, make_version, settings):
    first, second = make_version("v1.0.0"), make_version("v1.0.1", parent="v1.0.0")
    third = make_version("v1.0.2", parent="v1.0.1")
    with endpoint(base=always_buy, **{"v1.0.0": reads_news, "v1.0.1": hold, "v1.0.2": alternates}) as served:
        assert [evaluate(batch, served).decision for batch in (first, second)] == ["pass", "fail"]
        report = evaluate(third, served)
        assert (report.reference, report.decision) == ("v1.0.0", "fail")
        assert [row["role"] for row in report.rows[:4]] == ["candidate", "passed", "parent", "base"]
        (settings.home / "checkpoints" / "v1.0.0").rename(settings.home / "elsewhere")
        without = evaluate(third, served)
    assert without.reference == "base"
    assert "The reference is the base, as no version is deployed. The passed v1.0.0 could not be played here:" in without.reason


@pytest.mark.long
@pytest.mark.parametrize(("rule", "word"), [(hold, "answers hold in 100.0%"), (always_buy, "answers buy in 100.0%"), (babble, "unusable")])
def test_a_broken_checkpoint_is_refused(evaluate, make_version, rule, word):
    batch = make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": rule}) as served:
        report = evaluate(batch, served)
    assert report.decision == "fail" and word in report.reason


@pytest.mark.long
@pytest.mark.parametrize("base", [hold, reads_news])
@pytest.mark.parametrize("candidate", [noise, alternates, reads_wrongly])
def test_who_trades_without_a_view_or_against_it_is_not_let_through(evaluate, make_version, base, candidate):
    batch = make_version("v1.0.0")
    with endpoint(base=base, **{"v1.0.0": candidate}) as served:
        report = evaluate(batch, served)
    assert report.decision in ({"fail"} if base is reads_news or candidate is reads_wrongly else {"fail", "inconclusive"})


@pytest.mark.long
def test_an_undecided_benchmark_plays_on_and_finds_its_way_again(evaluate, make_version):
    batch = make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        clear = rows(evaluate(batch, served, min_improvement=TOO_MUCH))["v1.0.0"]
        asked_for = clear["improvementLow"] + 0.05 * (clear["improvementHigh"] - clear["improvementLow"])
        served.breaks_after = sum(served.asked.values()) + 5 * TICKS
        with pytest.raises(ModelUnavailable):
            evaluate(batch, served, min_improvement=asked_for)
        assert "v1.0.0: 12 markets decide nothing. 24 are played." in evaluate.said
        served.breaks_after = None
        report = evaluate(batch, served, min_improvement=asked_for)
        asked = dict(served.asked)
        assert evaluate(batch, served, min_improvement=asked_for) == report and served.asked == asked
    assert report.markets == FEWEST_MARKETS == rows(report)["v1.0.0"]["markets"]
    assert report.markets * TICKS <= asked["v1.0.0"] <= (report.markets + 5) * TICKS
    found = rows(report)["v1.0.0"]
    assert found["improvementHigh"] - found["improvementLow"] < clear["improvementHigh"] - clear["improvementLow"]


def test_a_benchmark_too_small_for_a_pass_says_so(evaluate, make_version):
    batch = make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        report = evaluate(batch, served, benchmark_markets=11)
    assert (report.decision, report.markets) == ("inconclusive", 11)
    assert "a pass needs 48 markets at least (BENCHMARK_MARKETS)" in report.reason


@pytest.mark.parametrize("trained", ["v1.0.0", "v1.0.2"])
def test_a_market_that_an_ancestor_was_trained_on_is_refused(evaluate, make_version, connection, database, settings, trained):
    make_version("v1.0.0")
    make_version("v1.0.1", parent="v1.0.0")
    batch = make_version("v1.0.2", parent="v1.0.1")
    windows = [benchmark_snapshots(2)[1].window]
    connection.execute('UPDATE babylon_rl.model_lineage SET "windows" = %s WHERE "version" = %s', [windows, trained])
    connection.commit()
    with endpoint() as served, pytest.raises(MarketError, match="overlap with training: 2000-01-01T01:00"):
        evaluate(batch, served)
    with pytest.raises(MarketError, match="overlap with training: 2000-01-01T01:00"):
        standings(Demo(settings, database, 1, 0), ["v1.0.2"], "v1.0.2")


@pytest.mark.parametrize("how", ["dry", "gone", "damaged", "other base"])
def test_a_version_that_cannot_be_played_here_is_not_compared(evaluate, make_version, connection, settings, base_dir, how):
    batch = make_version("v1.0.0", base_model="dry" if how == "dry" else "tiny-base")
    checkpoint = settings.home / "checkpoints" / "v1.0.0"
    if how == "gone":
        checkpoint.rename(settings.home / "elsewhere")
    if how == "damaged":
        write_tensors(checkpoint / "adapter_model.safetensors", 9.0)
    if how == "other base":
        (base_dir / "config.json").write_text('{"other": 1}')
    connection.execute('UPDATE trained_models SET "benchmarkScore" = 5')
    with endpoint() as served:
        report = evaluate(batch, served)
    words = {"dry": "dry run", "gone": "not on this machine", "damaged": "is damaged", "other base": "another config"}
    assert report.decision == "not_compared" and words[how] in report.reason
    assert (served.starts, list(rows(report))) == (0, [*NAMES, "best-by-prompt"])
    assert record_release(connection, batch, NOW).decision == "not_compared"
    assert connection.execute('SELECT "benchmarkScore" FROM trained_models').fetchone() == (5,)


@pytest.mark.long
def test_a_new_report_replaces_the_old_and_its_release(evaluate, make_version, connection):
    batch = make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        evaluate(batch, served, min_improvement=TOO_MUCH)
        record_release(connection, batch, NOW)
        evaluate(batch, served, min_improvement=2 * TOO_MUCH)
        release = record_release(connection, batch, NOW + timedelta(hours=1))
    assert release.decision == "fail" and "above the required +2000000.0" in release.reason
    assert connection.execute('SELECT "decision", "decidedAt" FROM babylon_rl.releases').fetchall() == [("fail", NOW + timedelta(hours=1))]


def test_what_is_not_there_is_a_sentence(evaluate, connection):
    with endpoint() as served, pytest.raises(TrainingError, match="has registered no version"):
        evaluate("batch-none", served)
    with pytest.raises(UsageError, match="no benchmark report"):
        record_release(connection, "batch-none", NOW)


@pytest.mark.long
def test_it_works_on_an_autocommit_connection(make_version, database, settings):
    batch = make_version("v1.0.0")
    settings = settings.model_copy(update={"min_improvement": TOO_MUCH})
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served, database.connect(autocommit=True) as connection:
        report = evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
        assert record_release(connection, batch, NOW).decision == report.decision == "fail"


def test_a_child_that_is_worse_than_its_parent_is_refused_before_the_gate(evaluate, make_version, connection, settings):
    make_version("v1.0.0", status="deployed")
    batch = make_version("v1.0.1", parent="v1.0.0")
    simulated(connection)
    with endpoint(base=hold, **{"v1.0.0": reads_fresh(0.0), "v1.0.1": reads_fresh(0.3)}) as served:
        report = evaluate(batch, served)
        assert served.asked == {"v1.0.0": HOURS * TICKS, "v1.0.1": HOURS * TICKS}, "nobody played the gate's markets"
        again = evaluate(batch, served)
        assert again == report and sum(served.asked.values()) == 2 * HOURS * TICKS, "results are stored once"
        # Without the decisions their expected dollars are not known: the hour is played again.
        next((settings.home / "benchmarks" / "v1.0.1").glob("fresh-0000*.json")).unlink()
        assert evaluate(batch, served) == report and sum(served.asked.values()) == (2 * HOURS + 1) * TICKS
    assert (report.decision, report.reference, list(rows(report))) == ("fail", None, [*NAMES, "best-by-prompt"])
    assert report.reason.startswith("v1.0.1 is worse than its parent in fresh training hours (v1.0.0; -")
    assert report.table_markdown.startswith("**fail**: v1.0.1 is worse than its parent")
    assert evaluate.told == [("fresh training hours of v1.0.1", done, HOURS) for done in (HOURS - 1, HOURS)]
    release = record_release(connection, batch, NOW)
    assert release.decision == "fail"
    assert connection.execute('SELECT "benchmarkScore" FROM trained_models WHERE version = %s', ["v1.0.1"]).fetchone() == (None,)


def test_a_child_that_lost_its_parents_reading_to_holding_is_told_of_the_floor(evaluate, make_version, connection):
    make_version("v1.0.0", status="deployed")
    batch = make_version("v1.0.1", parent="v1.0.0")
    simulated(connection)
    connection.execute('UPDATE babylon_rl.batches SET "preflight" = %s', ['{"ownTradePnl": -3.1}'])
    connection.execute(
        'INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson")'
        " VALUES (%s, %s, 'tiny-base', 'v1.0.1', '[]', '[]')",
        [batch, batch],
    )
    with endpoint(base=hold, **{"v1.0.0": reads_fresh(0.0), "v1.0.1": hold}) as served:
        report = evaluate(batch, served)
    assert report.decision == "fail" and ". HOLD floor: v1.0.1 holds in 100% of its decisions" in report.reason
    assert "lost $3.10" in report.reason and report.reason.endswith("CREDIT=answers.")


def test_a_child_as_good_as_its_parent_goes_on_to_the_gate(evaluate, make_version, connection):
    make_version("v1.0.0")
    batch = make_version("v1.0.1", parent="v1.0.0")
    simulated(connection)
    with endpoint(base=hold, **{"v1.0.0": reads_fresh(0.0), "v1.0.1": reads_fresh(0.0)}) as served:
        report = evaluate(batch, served, benchmark_markets=2)
    check = rows(report)["v1.0.1"]["checks"][0]
    assert (check["name"], check["found"]) == ("kept", "pass") and "+0.0 expected dollars an hour over 24" in check["words"]
    assert f"Before the gate's markets: {check['words']}." in report.table_markdown


@pytest.mark.parametrize("parent", [None, "v1.0.0", "v0.0.9"])
def test_without_a_parent_or_simulated_hours_nothing_is_played_before_the_gate(evaluate, make_version, connection, parent):
    make_version("v1.0.0")
    batch = make_version("v1.0.1", parent=parent)
    if parent == "v0.0.9":
        simulated(connection)
    with endpoint(base=hold, **{"v1.0.0": hold, "v1.0.1": reads_news}) as served:
        report = evaluate(batch, served, benchmark_markets=2)
    assert served.asked["v1.0.1"] == 2 * TICKS
    check = rows(report)["v1.0.1"]["checks"][0]
    why = {None: "was trained from the base", "v1.0.0": "was trained on recorded hours", "v0.0.9": "the parent v0.0.9 is not registered"}
    assert (check["name"], check["found"]) == ("kept", "pass") and why[parent] in check["words"]


@pytest.mark.parametrize(("loss", "found"), [(0.0, "pass"), (5.0, "pass"), (150.0, "fail")])
def test_a_step_back_is_a_difference_beyond_its_one_sided_interval(loss, found):
    parent = [250.0 + 15 * (number % 7) for number in range(HOURS)]
    child = [usd - loss + 30 * ((-1) ** number) for number, usd in enumerate(parent)]
    assert kept_check("v1.0.1", child, "v1.0.0", parent).found == found
