"""Three machines with a database and an S3 server between them: one trains, one judges what it trained and deploys it, one serves it."""

from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree

import pytest

from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, verify
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now
from babylon_rl_tests.e2e.host import Host, version_of_answer
from babylon_rl_tests.object_store import ObjectStore

FIRST_HOUR = "2025-11-15T10:00"
GATE = """
import sys
from babylon_rl.evaluation.benchmark import evaluate_batch, record_release
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database
from babylon_rl.windows import utc_now
settings = load_settings()
with open_database(settings) as database, database.connect() as connection:
    evaluate_batch(connection, sys.argv[1], settings, print)
    print(record_release(connection, sys.argv[1], utc_now()).decision)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_version_goes_from_the_machine_that_trains_to_those_that_judge_and_serve_it(
    database: Database, object_store: ObjectStore, tiny_base: Path, tmp_path: Path
) -> None:
    database.prepare_dagster_schema()
    with database.connect() as connection:
        spawn(connection, SpawnRequest(agents=5, model_agents=0, windows=2, seed=4, start=FIRST_HOUR), utc_now(), None)
    variables = {
        **object_store.variables, "DATABASE_URL": database.url, "MODEL_STORAGE_URL": object_store.bucket(), "TRAIN_RL_LOCAL": "true",
        "LOCAL_BASE_MODEL": str(tiny_base), "ITERATIONS": "1", "FIRST_WINDOW": FIRST_HOUR, "BENCHMARK_MARKETS": "2",
    }  # fmt: skip
    trainer, judge, server = (Host(tmp_path / name, variables) for name in ("trainer", "judge", "server"))

    trained = trainer.asks("train", "--from", FIRST_HOUR, "--to", "2025-11-15T12:00")
    assert trained["checkpoint"] == str(trainer.home / "checkpoints" / "v1.0.0")
    rmtree(trainer.home)

    object_store.downloads.clear()
    assert judge.runs("-c", GATE, trained["batchId"]).splitlines()[-1] in ("pass", "fail", "inconclusive")
    played = judge.asks("benchmark", "standings", "v1.0.0", "base", "--markets", "2")
    assert [row["model"] for row in played["rows"]] == ["v1.0.0", "base"]
    assert judge.asks("models", "deploy", "v1.0.0", "--strategy", "immediate")["version"] == "v1.0.0"
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1
    # How it decided can be looked at where it played.
    looked_at = judge.asks("benchmark", "compare", "v1.0.0", "base", "--gate")
    assert sorted((row["agent"], row["snapshots"]) for row in looked_at["agents"]) == [("base", 2), ("v1.0.0", 2)]
    rmtree(judge.home)

    object_store.downloads.clear()
    with ExitStack() as servers:
        model = servers.enter_context(server.serves("model", "base"))
        assert object_store.downloads == []
        gateway = servers.enter_context(Host(server.home, variables | {"LOCAL_ENDPOINT": model}).serves("gateway"))
        for _ in range(2):
            assert version_of_answer(gateway) == "v1.0.0"
    assert verify(server.home / "checkpoints" / "v1.0.0").batch_id == trained["batchId"]
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1
