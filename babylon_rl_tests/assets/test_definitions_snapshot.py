"""The graph cannot change unseen: everything that is defined, as a committed document.

After a change that is meant: ``UPDATE_SNAPSHOT=1 python -m pytest babylon_rl_tests/assets/test_definitions_snapshot.py``.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from babylon_rl.definitions import defs
from babylon_rl.heap import kept_whole

SNAPSHOT = Path(__file__).with_suffix(".json")


def _asset(key: dg.AssetKey) -> dict[str, Any]:
    node = defs.resolve_asset_graph().get(key)
    schema = node.metadata.get("columns")
    return {
        "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
        "group": node.group_name,
        "owners": sorted(node.owners),
        "kinds": sorted(name.removeprefix("dagster/kind/") for name in node.tags if name.startswith("dagster/kind/")),
        "description": node.description,
        "codeVersion": node.code_version,
        "partitions": type(node.partitions_def).__name__,
        "backfill": str(node.backfill_policy) if node.backfill_policy else None,
        "pools": sorted(node.pools or []),
        "condition": node.automation_condition.get_label() if node.automation_condition else None,
        "freshness": _hours(node.freshness_policy_or_from_metadata),
        "columns": [column.name for column in schema.columns] if schema else [],
        "checks": sorted(check.name for check in node.check_keys),
    }


def _hours(policy: Any) -> list[float] | None:
    """Hours after which an asset is shown as late, and as failing."""
    return policy and [window.to_timedelta().total_seconds() / 3600 for window in (policy.warn_window, policy.fail_window)]


def document() -> dict[str, Any]:
    """All definitions, sorted."""
    graph, repository = defs.resolve_asset_graph(), defs.get_repository_def()
    return {
        "assets": {key.to_user_string(): _asset(key) for key in sorted(graph.get_all_asset_keys())},
        "jobs": {job.name: sorted(job.graph.node_dict) for job in repository.get_all_jobs() if not job.name.startswith("__")},
        "sensors": {
            s.name: [s.default_status.value, s.minimum_interval_seconds] for s in sorted(repository.sensor_defs, key=lambda s: s.name)
        },
        "schedules": {s.name: [s.default_status.value, s.cron_schedule] for s in repository.schedule_defs},
    }


def test_definitions_are_as_committed():
    text = json.dumps(document(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert SNAPSHOT.read_text() == text, "The definitions changed: read this file's first lines."


def test_every_asset_says_whose_it_is_what_it_holds_and_in_which_version():
    for name, asset in document()["assets"].items():
        assert asset["owners"] == ["team:babylon-rl"], name
        assert asset["group"] and asset["kinds"] and asset["description"] and asset["columns"], name
        assert asset["codeVersion"] or not asset["deps"], name


def test_every_asset_and_every_check_says_what_to_do_when_it_is_red():
    graph = defs.resolve_asset_graph()
    described = {key.to_user_string(): graph.get(key).description for key in graph.get_all_asset_keys()}
    described |= {key.to_user_string(): graph.get_check_spec(key).description for key in graph.asset_check_keys}
    assert len(described) == 14 + 38
    for name, text in described.items():
        assert len((text or "").partition("**When red:** ")[2]) > 20, name


HEAVY = (
    "torch transformers art litellm openai wandb pandas numpy scipy matplotlib pyarrow aiohttp starlette uvicorn prometheus_client "
    "opentelemetry structlog rich sqlalchemy alembic psycopg2 celery kombu redis botocore"
)


def test_loading_the_definitions_loads_nothing_heavy() -> None:
    """Each run's process pays for it: benchmarks/import_definitions.py measures the seconds."""
    code = f"import sys, babylon_rl.definitions; print(*[name for name in {HEAVY.split()} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_loading_the_definitions_leaves_no_garbage_to_look_through() -> None:
    code = "import gc, babylon_rl.definitions; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True True"


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_as_it_was_after_a_block_that_is_kept(collects: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(ValueError, match="x"), kept_whole():
            assert not gc.isenabled()
            raise ValueError("x")
        assert gc.isenabled() is collects
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
