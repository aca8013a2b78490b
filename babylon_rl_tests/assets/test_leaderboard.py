"""The leaderboard as an asset: what its page shows, and that a run of a batch makes it."""

from collections.abc import Callable

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.definitions import defs
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import Bench

LEADERBOARD = [dg.AssetKey("leaderboard")]
CHOSEN = dg.AssetSelection.assets("leaderboard")


def test_its_page_has_the_order_and_the_picture(make_bench: Callable[..., Bench], database: Database) -> None:
    bench = make_bench(database, benchmark_markets=4)
    bench.instance.add_dynamic_partitions(str(batches.name), ["batch-1"])
    assert bench.run("train", "batch-1", asset_selection=LEADERBOARD).success
    (made,) = bench.materializations("leaderboard").values()
    metadata = made.metadata
    assert (metadata["dagster/row_count"].value, metadata["markets"].value, metadata["versions"].value) == (10, 4, 0)
    assert "| 1 | oracle (strategy) |" in metadata["leaderboard"].value and metadata["pictures"].value.startswith("![")
    assert next(record.data["who"] for record in metadata["rows"].records) == "oracle"  # type: ignore[attr-defined]
    assert (bench.babylon.settings.home / "benchmarks" / "leaderboard.png").is_file()
    bench.run("train", "batch-1", asset_selection=LEADERBOARD)
    records = bench.instance.fetch_materializations(LEADERBOARD[0], limit=2).records
    assert [record.partition_key for record in records] == [None, None]
    assert len({record.asset_materialization.tags["dagster/data_version"] for record in records}) == 1


@pytest.mark.slow
def test_a_report_that_changed_alone_is_ranked_once_and_one_of_a_whole_run_not_again(
    make_bench: Callable[..., Bench], database: Database
) -> None:
    bench = make_bench(database, benchmark_markets=4)
    bench.instance.add_dynamic_partitions(str(batches.name), ["batch-1"])
    cursor = None

    def asked() -> bool:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(defs, bench.instance, asset_selection=CHOSEN, cursor=cursor)
        cursor = result.cursor
        return result.total_requested > 0

    def report(version: str) -> None:
        tags = {"dagster/data_version": version}
        bench.instance.report_runless_asset_event(dg.AssetMaterialization("benchmark_report", partition="batch-1", tags=tags))

    assert not asked()
    report("a")
    assert asked() and not asked()
    bench.run("train", "batch-1", asset_selection=LEADERBOARD)
    assert not asked()
    report("b")
    bench.run("train", "batch-1", asset_selection=LEADERBOARD)
    assert not asked() and not asked()
    report("b")
    assert not asked()
