"""How many snapshots a wanted difference needs follows from how much the runs at hand varied."""

from pathlib import Path

import pytest

from babylon_rl.cli.benchmark_run import needed, needed_table
from babylon_rl.evaluation.compare_results import ComparisonDocument, compare_results
from babylon_rl.evaluation.statistics.intervals import markets_needed, spread_of
from babylon_rl_tests.evaluation.runs import results

MARKETS, REPEATS = 6, 2


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> ComparisonDocument:
    return compare_results(results(tmp_path_factory.mktemp("runs"), "oracle", "random", "nothing", markets=MARKETS, repeats=REPEATS))


def test_a_smaller_difference_needs_more_snapshots_and_repeats_need_fewer(comparison: ComparisonDocument) -> None:
    rows = needed(comparison, 20.0)
    assert [(row["a"], row["b"], row["repeats"]) for row in rows] == [
        (pair.a, pair.b, times) for pair in comparison.pairs for times in (1, REPEATS)
    ]
    for once, twice in zip(rows[::2], rows[1::2], strict=True):
        assert twice["snapshots"] <= once["snapshots"] and once["played"] == MARKETS
    assert all(half["snapshots"] > whole["snapshots"] for half, whole in zip(needed(comparison, 10.0), rows, strict=True))


def test_the_confidence_is_shared_among_the_pairs(comparison: ComparisonDocument) -> None:
    of = {name: [run.metrics.total_pnl for run in comparison.runs if run.agent_id == name] for name in ("random", "nothing")}
    snapshots = [run.snapshot for run in comparison.runs if run.agent_id == "random"]
    spread = spread_of([one - other for one, other in zip(of["random"], of["nothing"], strict=True)], snapshots)
    [row] = [row for row in needed(comparison, 100.0) if {row["a"], row["b"]} == {"random", "nothing"} and row["repeats"] == 1]
    assert row["snapshots"] == markets_needed(100.0, spread.of_means(), 1 - 0.05 / 3)


def test_one_snapshot_tells_no_spread_and_the_table_still_stands(tmp_path: Path) -> None:
    alone = compare_results(results(tmp_path, "balanced", "nothing", markets=1, repeats=1))
    assert needed(alone, 100.0) == []
    assert needed_table([]).rows == []


def test_the_table_says_the_effect_and_the_power(comparison: ComparisonDocument) -> None:
    made = needed_table(needed(comparison, 100.0))
    assert made.title == "Snapshots that show a difference of $100 with 80 % power"
    assert len(made.rows) == 2 * len(comparison.pairs)
