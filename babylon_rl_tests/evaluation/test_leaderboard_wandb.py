"""The leaderboard in Weights & Biases: the real client, offline into files, online against a stand-in over HTTP."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.evaluation.comparison import STRATEGY, compare
from babylon_rl.evaluation.leaderboard import Leaderboard, LeaderboardRow
from babylon_rl.evaluation.leaderboard_wandb import RUN_ID, send
from babylon_rl.evaluation.play import scripted
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.settings import Settings
from babylon_rl_tests.evaluation.runs import rows_in
from babylon_rl_tests.evaluation.weights_and_biases import weights_and_biases

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def board() -> Leaderboard:
    markets = benchmark_snapshots(3)
    played = {name: (STRATEGY, rows_in(scripted(name), markets)) for name in ("balanced", "nothing")}
    standings = compare(played, None, None).rows
    return Leaderboard(tuple(LeaderboardRow(place, one) for place, one in enumerate(standings, start=1)), (), 3, None)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plot.png")
    return tmp_path / "plot.png"


@pytest.fixture
def online(settings: Settings) -> Settings:
    return settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_project": "p"})


def test_without_a_key_nothing_is_sent_and_it_says_so(board: Leaderboard, png: Path, settings: Settings) -> None:
    sent = send(board, png, settings)
    assert sent.link is None and "WANDB_API_KEY is not set" in sent.words
    off = send(board, png, settings.model_copy(update={"wandb_mode": "disabled", "wandb_api_key": SecretStr(KEY)}))
    assert off.link is None and "WANDB_MODE is disabled" in off.words
    assert not settings.home.exists()


@pytest.mark.long
def test_offline_a_run_is_written_into_the_state_directory(board: Leaderboard, png: Path, settings: Settings) -> None:
    offline = settings.model_copy(update={"wandb_mode": "offline"})
    sent = send(board, png, offline)
    assert sent.link is not None and sent.words == f"Written for `wandb sync {sent.link}`."
    directory = Path(sent.link)
    assert directory.parent == settings.home / "wandb" and (directory / f"run-{RUN_ID}.wandb").stat().st_size > 1000
    (table,) = directory.glob("files/media/table/leaderboard_*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][:3] == ["place", "model", "role"] and [row[1] for row in rows["data"]] == ["balanced", "nothing"]
    assert len(list(directory.glob("files/media/images/plot_*.png"))) == 1
    again = send(board, png, offline)
    assert again.link == sent.link and "already" in again.words
    assert len(list((settings.home / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.long
def test_online_every_new_state_is_a_step_of_one_run(board: Leaderboard, png: Path, online: Settings) -> None:
    with weights_and_biases() as service:
        online = online.model_copy(update={"wandb_base_url": service.url})
        first = send(board, png, online)
        assert (first.words, first.link) == ("In Weights & Biases.", f"{service.url}/me/p/runs/{RUN_ID}")
        assert send(board, png, online).words == "As it is in Weights & Biases already."
        changed = replace(board, markets=4)
        assert send(changed, png, online).link == first.link
    assert list(service.history) == [RUN_ID] and service.resumed == 1
    steps = service.history[RUN_ID]
    assert [step["_step"] for step in steps] == [0, 1]
    pnl = next(line.row.pnl.mean for line in board.lines if line.row.player == "balanced")
    assert all(step["pnl/balanced"] == pytest.approx(pnl) for step in steps)
    assert service.summary["markets"] == 4 and service.summary["dataVersion"] == changed.data_version
    table = next(body for path, body in service.files.items() if path.startswith("media/table/leaderboard_"))
    assert [row[1] for row in json.loads(table)["data"]] == ["balanced", "nothing"]
    assert any(body.startswith(b"\x89PNG") for path, body in service.files.items() if path.startswith("media/images/plot_"))


@pytest.mark.long
def test_a_service_that_is_down_is_a_sentence_and_the_next_state_is_sent(board: Leaderboard, png: Path, online: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    sent = send(board, png, online.model_copy(update={"wandb_base_url": nobody}), init_timeout_s=2)
    assert sent.link is None and sent.words.startswith("Not sent to Weights & Biases: ") and len(sent.words) > 40
    assert KEY not in sent.words and not (online.home / "wandb" / "leaderboard.json").exists()
