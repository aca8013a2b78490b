"""The leaderboard as an asset: what its page shows, and that a run of a batch makes it."""

from collections.abc import Callable

import dagster as dg

from babylon_rl.assets.partitions import batches
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import Bench

LEADERBOARD = [dg.AssetKey("leaderboard")]


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
