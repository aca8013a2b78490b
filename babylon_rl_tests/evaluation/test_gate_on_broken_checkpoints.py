"""Adapters that are broken on purpose go the way of a trained version, and the gate refuses them by name; a better one passes there."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from babylon_rl.errors import CheckpointError
from babylon_rl.evaluation.gate import FEWEST_MARKETS
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl_tests.evaluation.conftest import NOW
from babylon_rl_tests.evaluation.endpoint import alternates, endpoint, reads_news
from babylon_rl_tests.tiny_model import make_base
from benchmarks.broken_adapters import BUY, HOLD, NOISE, make_adapter
from benchmarks.broken_checkpoints import checkpoint_of, judge, register, served

pytestmark = pytest.mark.slow

MARKETS = 2  # a collapse shows in any number
ENOUGH = 12  # grows to what a pass needs
FEW = {"hours": 1, "rows": 4}


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    """A tiny model of random weights with room for a prompt; `python -m benchmarks.broken_checkpoints` takes the packaged one."""
    made = make_base(tmp_path / "tiny-base")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return made


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"benchmark_markets": MARKETS})


def ignored(line: str) -> None:
    """What the benchmark says of its progress."""


@pytest.mark.long
def test_checkpoints_that_always_hold_or_buy_are_refused_with_the_reason(
    database: Database, settings: Settings, base_dir: Path, tmp_path: Path
) -> None:
    """One server answers for all of them, as it does for a candidate and its rivals; loading the base takes as long as asking it."""
    longer = {"steps": 80, "rate": 2e-2}
    recipes = (replace(HOLD, **FEW, **longer), replace(BUY, **FEW, **longer))
    with database.connect() as connection:
        batches = [
            register(connection, settings, recipe.name, make_adapter(recipe, base_dir, tmp_path / recipe.name), NOW) for recipe in recipes
        ]
        adapters = {model.version: Path(model.storage_path) for model in read_models(connection)}
        with served(settings, adapters) as url:
            held, bought = [judge(connection, settings, batch, ignored, lambda *_: nullcontext(url)) for batch in batches]
        decided = connection.execute('SELECT "version", "decision" FROM babylon_rl.releases ORDER BY 1').fetchall()
        statuses = {model.version: model.status for model in read_models(connection)}
    for report, action in ((held, "hold"), (bought, "buy")):
        assert report.decision == "fail"
        assert f"answers {action} in 100.0% of its 24 decisions: more than 95% is a collapse into one action" in report.reason
    assert decided == [(report.version, report.decision) for report in (held, bought)]
    assert statuses == {"v1.0.0": "ready", "v1.0.1": "ready"}


@pytest.mark.long
def test_a_checkpoint_of_random_weights_does_not_pass_where_a_better_one_does(
    database: Database, settings: Settings, base_dir: Path, tmp_path: Path
) -> None:
    """The better one's answers are a stand-in's that reads the news; everything else is the same for both."""
    settings = settings.model_copy(update={"benchmark_markets": ENOUGH})
    with database.connect() as connection:
        batches = [
            register(connection, settings, name, make_adapter(replace(NOISE, seed=seed), base_dir, tmp_path / name), NOW)
            for seed, name in enumerate(("noise", "better"))
        ]
        adapters = {model.version: Path(model.storage_path) for model in read_models(connection)}
        with served(settings, adapters) as url:
            drew = judge(connection, settings, batches[0], ignored, lambda *_: nullcontext(url))
        with endpoint(base=alternates, **{"v1.0.1": reads_news}) as answers:
            better = judge(connection, settings, batches[1], ignored, answers.serving)
    assert (better.decision, better.markets) == ("pass", FEWEST_MARKETS)
    assert drew.decision != "pass" and drew.markets >= ENOUGH
    checks = {check["name"]: check for check in drew.rows[0]["checks"]}
    assert {checks[name]["found"] for name in ("improvement", "better_than_nothing")} != {"pass"}, "it is the money that speaks against it"
    found = [check for check in checks.values() if check["found"] == drew.decision]
    assert found and all(check["words"] in drew.reason for check in found)


def test_the_newest_version_of_a_state_directory_is_taken(tmp_path: Path) -> None:
    for version in ("v1.0.9", "v1.0.10"):
        (tmp_path / "checkpoints" / version).mkdir(parents=True)
        (tmp_path / "checkpoints" / version / "adapter_model.safetensors").write_bytes(b"")
    newest = tmp_path / "checkpoints" / "v1.0.10"
    assert checkpoint_of(tmp_path) == newest == checkpoint_of(newest)
    with pytest.raises(CheckpointError, match="no adapter directory"):
        checkpoint_of(tmp_path / "checkpoints")
