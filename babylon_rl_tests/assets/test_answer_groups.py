"""The asset answer_groups: an hour's page, what it says where there is nothing to replay, and its lineage."""

from collections.abc import Callable
from datetime import datetime

import dagster as dg
import pytest

from babylon_rl.definitions import defs
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import Bench
from babylon_rl_tests.market.stand_in import by_seed, stand_in

pytestmark = pytest.mark.slow
NOW = datetime(2025, 11, 16, 9, 30)
HOUR, SCRIPTED = "2025-11-15T10:00", "2025-11-15T11:00"
READ = [dg.AssetKey(name) for name in ("window_groups", "market_outcomes", "answer_groups")]


@pytest.mark.parametrize("credit", ["answers", "part"])
def test_an_hours_page_shows_its_groups_or_why_it_has_none(make_bench: Callable[..., Bench], database: Database, credit: str) -> None:
    with stand_in(by_seed) as served, database.connect(autocommit=True) as connection:
        with ChatClient(served.url, None, "v1.0.0") as client:
            spawn(connection, SpawnRequest(6, 1, 1, 3, start=HOUR), NOW, model_agent(client))
        spawn(connection, SpawnRequest(5, 0, 1, 3, start=SCRIPTED), NOW, None)
    bench = make_bench(database, NOW, credit=credit)
    assert bench.run("hours", HOUR, SCRIPTED, asset_selection=READ).success
    pages = bench.materializations("answer_groups")
    rows = {window: pages[window].metadata["dagster/row_count"].value for window in (HOUR, SCRIPTED)}
    if credit == "part":
        assert rows == {HOUR: 0, SCRIPTED: 0} and pages[HOUR].metadata["answers"].value == "none: CREDIT is part"
        return
    assert rows == {HOUR: 12, SCRIPTED: 0} and pages[HOUR].metadata["answers_count"].value == 108
    first = pages[HOUR].metadata["groups"].records[0].data  # type: ignore[attr-defined]
    assert first["version"] == "v1.0.0" and first["answers"] == 9 and first["best $"] > 0 > first["worst $"]
    assert pages[SCRIPTED].metadata["not_replayed"].value.startswith("no call of a model")


def test_it_stands_between_the_hour_and_the_batch() -> None:
    graph = defs.resolve_asset_graph()
    node = graph.get(dg.AssetKey("answer_groups"))
    assert node.parent_keys == {dg.AssetKey("window_groups"), dg.AssetKey("market_outcomes")}
    assert dg.AssetKey("training_batch") in node.child_keys
