"""The leaderboard of versions, on stored results of a real endpoint."""

import json
from pathlib import Path

import pytest

from babylon_rl.evaluation.benchmark import evaluate_batch
from babylon_rl.evaluation.leaderboard import leaderboard, leaderboard_png, markdown
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl_tests.evaluation.conftest import NOW, write_tensors
from babylon_rl_tests.evaluation.endpoint import alternates, endpoint, hold, reads_news, reads_wrongly

pytestmark = pytest.mark.slow

RULES = {"base": alternates, "v1.0.0": reads_wrongly, "v1.0.1": reads_news}


@pytest.fixture
def evaluate(connection, settings):
    def run(batch: str, markets: int = 12, **rules) -> None:
        changed = settings.model_copy(update={"benchmark_markets": markets, "min_improvement": 1e6})
        with endpoint(**(rules or RULES)) as served:
            evaluate_batch(connection, batch, changed, lambda line: None, clock=lambda: NOW, serving=served.serving)

    return run


def places(board) -> dict[str, int]:
    return {line.row.player: line.place for line in board.lines}


@pytest.mark.long
def test_versions_base_and_scripts_stand_in_one_order(evaluate, make_version, connection, settings):
    for batch in (make_version("v1.0.0"), make_version("v1.0.1", parent="v1.0.0", status="deployed")):
        evaluate(batch)
    board = leaderboard(connection, settings)
    found = places(board)
    assert set(found) == {"v1.0.0", "v1.0.1", "base", *NAMES, "best-by-prompt"} and sorted(found.values()) == list(range(1, 14))
    assert found["oracle"] == 1 and found["v1.0.1"] < found["base"] < found["v1.0.0"]
    assert (board.markets, board.reference, board.unranked) == (12, "base", {})
    rows = {line.row.player: line.document for line in board.lines}
    better = rows["v1.0.1"]
    assert better["decision"] == "fail" and better["role"] == "deployed" and better["parent"] == "v1.0.0"
    assert better["improvementLow"] > 0 and better["improvement"] == pytest.approx(better["pnl"] - rows["base"]["pnl"])
    assert rows["v1.0.0"]["decision"] == "fail" and rows["base"]["improvement"] is None and rows["nothing"]["status"] is None
    assert [line.row.player for line in board.versions] == ["v1.0.0", "v1.0.1"]
    assert leaderboard(connection, settings).data_version == board.data_version
    text = markdown(board)
    assert "| v1.0.1 (deployed) |" in text and "| fail |" in text and "12 unseen markets" in text
    picture = leaderboard_png(board)
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


@pytest.mark.long
def test_everybody_is_measured_in_the_markets_that_all_have_played(evaluate, make_version, connection, settings):
    evaluate(make_version("v1.0.0"), markets=14)
    evaluate(make_version("v1.0.1", parent="v1.0.0"), markets=12)
    board = leaderboard(connection, settings)
    assert board.markets == 12 and {len(line.row.results) for line in board.lines} == {12}


@pytest.mark.long
def test_who_cannot_be_compared_is_named_with_the_reason(evaluate, make_version, connection, settings):
    few, foreign, played = make_version("v1.0.0"), "v0.9.0", make_version("v1.0.2")
    evaluate(few, markets=4)
    make_version("v1.0.1")
    evaluate(make_version("v1.0.3", base_model="dry"))
    connection.execute(
        'INSERT INTO trained_models (id, "modelId", version, "baseModel", status, "storagePath", "createdAt", "updatedAt")'
        " VALUES ('f', 'f', %s, 'gpt', 'ready', 'x', %s, %s)",
        [foreign, NOW, NOW],
    )
    evaluate(played, **{"base": hold, "v1.0.2": reads_news})
    board = leaderboard(connection, settings)
    assert board.unranked == {
        "v1.0.3": "v1.0.3 could not be played here: a dry run makes checkpoints without a model.",
        "v1.0.1": "It has no benchmark report yet: materialize benchmark_report of batch-v1.0.1.",
        "v1.0.0": "It and the base share 4 of the markets as they are now: materialize benchmark_report of batch-v1.0.0.",
        "v0.9.0": "Another producer made it.",
    }
    assert board.markets == 12 and "v1.0.2" in places(board) and "* v0.9.0: Another producer made it." in markdown(board)


@pytest.mark.long
def test_a_version_on_weights_of_another_base_is_not_compared_with_this_one(evaluate, make_version, connection, settings, base_dir):
    evaluate(make_version("v1.0.0"))
    write_tensors(base_dir / "model.safetensors", 1.0, 3.0)
    evaluate(make_version("v1.0.1"))
    board = leaderboard(connection, settings)
    assert "v1.0.1" in places(board) and "v1.0.0" not in places(board)
    assert list(board.unranked.values()) == ["It stands on another base than the newest version."]


def test_without_any_version_scripts_stand_alone(connection, settings):
    board = leaderboard(connection, settings)
    assert set(places(board)) == {*NAMES, "best-by-prompt"} and board.reference is None and board.markets == 12
    assert leaderboard_png(board).startswith(b"\x89PNG") and json.dumps(board.document, allow_nan=False)


@pytest.fixture
def plot(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plot.png")
    return tmp_path / "plot.png"
