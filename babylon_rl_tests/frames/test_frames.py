"""Frames hold what the commands say, with the documented columns and dtypes, and docs/howto/notebook.md runs as it stands."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import pandas
import pytest
from pydantic import SecretStr

from babylon_rl import frames
from babylon_rl.cli.data import episode_rows
from babylon_rl.episodes.reading import read_window
from babylon_rl.errors import UsageError
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.outcomes import read_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import MarketResult, write_results
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.live_usage import write_calls
from babylon_rl.store.write_ahead import TrainingStep, begin_step, note_optimizer_steps
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.store.pipeline import dry
from babylon_rl_tests.training.exports import NOW, fill

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "notebook.md"
WINDOW, NEXT = "2025-10-29T16:00", "2025-10-29T17:00"
PLAYED = datetime(2025, 11, 1, 10, 30)


def _fill(url: str) -> None:
    """A scored game with a frozen batch, two players' results and two calls of the gateway."""
    fill(url)
    with connect(url) as connection:
        batch = freeze(connection, dry(Settings(_env_file=None)), NOW).batch
        assert batch is not None
        begun = TrainingStep(1, 1, "dry", 0, batch.windows[:1], 1, NOW, None, None, None, None, None)
        begin_step(connection, batch.batch_id, begun)
        taken = [{"loss": loss, "ratio": 1.5, "trainableTokens": 7} for loss in (0.5, 0.25)]
        note_optimizer_steps(connection, batch.batch_id, 1, 1, taken, 2)
        connection.commit()
        for model, gain in (("base", -3.0), ("v1.0.0", 5.0)):
            results = [_result(f"s{number}", gain + number) for number in range(3)]
            write_results(connection, model, "w", {result.snapshot: "m" for result in results}, results, PLAYED)
        call = {"agentId": "a", "keyName": None, "chosenVersion": "v1.0.0", "version": None, "arm": "deployed", "fallback": "timeout"}
        call |= {"status": 200, "latencyMs": 12.5, "firstTokenMs": None, "promptTokens": 7, "completionTokens": None}
        times = {"c1": "2025-11-01T10:59:59.999", "c2": "2025-11-01T11:00:00"}
        write_calls(connection, [{**call, "callId": name, "at": at} for name, at in times.items()], [])


def _result(snapshot: str, pnl: float) -> MarketResult:
    return MarketResult(snapshot, pnl, 1, 0, 1, 2, 0, {"buy": 1, "sell": 0, "hold": 1}, 1, 1, (0.0, pnl))


TEMPLATES["framed"] = ("sample", _fill)


@pytest.fixture
def framed(copy_of: Callable[[str], Database]) -> Database:
    return copy_of("framed")


@pytest.fixture
def settings(framed: Database, settings: Settings) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(framed.url)})


def plain(frame: pandas.DataFrame, *but: str) -> list[dict[str, Any]]:
    """Rows as Python has them: missing values are None."""
    kept = frame.drop(columns=list(but)).astype(object)
    return kept.where(kept.notna(), None).to_dict("records")


@pytest.mark.slow
def test_episodes_scores_and_outcomes_are_those_of_the_commands(framed: Database, settings: Settings) -> None:
    with framed.connect() as connection:
        reading = read_window(connection, WINDOW, settings, texts=False)
        group = stored_scores(connection, [WINDOW])[WINDOW]
        market = read_outcomes(connection, WINDOW, settings)
    told = {row["agentId"]: row for row in episode_rows(reading)}
    for row in plain(frames.episodes(WINDOW, NEXT, settings=settings), "window", "windowStart"):
        wanted = told.pop(row["agentId"])
        assert row == {name: wanted[name] for name in row}
    assert not told
    scores = frames.scores(WINDOW, NEXT, settings=settings)
    assert list(scores["agentId"]) == [score.agent_id for score in group.scores]
    assert list(scores["advantage"]) == [score.advantage for score in group.scores]
    assert set(scores["groupSize"]) == {group.group_size}
    outcomes = frames.outcomes(WINDOW, NEXT, settings=settings)
    stocks = outcomes[outcomes["kind"] == "stock"]
    assert list(stocks["changePercent"]) == [stock.change_percent for stock in market.stocks]
    assert list(outcomes[outcomes["kind"] == "prediction"]["name"]) == [question.question for question in market.predictions]
    assert set(outcomes["windowStart"]) == {pandas.Timestamp("2025-10-29T16:00", tz="UTC")}


def test_batches_results_and_calls_are_chosen_by_their_own_hours(settings: Settings) -> None:
    (batch,) = plain(frames.batches(settings=settings))
    assert (batch["state"], batch["backend"], batch["completedAt"]) == ("pending", "dry", None)
    assert batch["createdAt"] == pandas.Timestamp(NOW, tz="UTC")
    assert len(frames.batches(min(batch["windows"]), settings=settings)) == 1
    assert len(frames.batches("2025-11-20T00:00", settings=settings)) == 0
    first, second = plain(frames.steps(min(batch["windows"]), settings=settings))
    assert (first["batchId"], first["step"], first["loss"], first["ratio"], first["kl"]) == (batch["batchId"], 1, 0.5, 1.5, None)
    assert (second["step"], second["loss"], second["trainableTokens"]) == (2, 0.25, 7)
    results = frames.results("2025-11-01T10:00", "2025-11-01T11:00", settings=settings)
    assert list(results["pnlUsd"]) == [-3.0, -2.0, -1.0, 5.0, 6.0, 7.0]
    assert results["actions"][0] == {"buy": 1, "sell": 0, "hold": 1}
    assert len(frames.results("2025-11-01T11:00", settings=settings)) == 0
    (call,) = plain(frames.gateway_calls("2025-11-01T10:00", "2025-11-01T11:00", settings=settings))
    assert (call["callId"], call["version"], call["latencyMs"], call["promptTokens"]) == ("c1", None, 12.5, 7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", frames.COLUMNS)
def test_a_frame_has_the_documented_columns_with_and_without_rows(kind: frames.Kind, settings: Settings) -> None:
    read = getattr(frames, kind)
    full, empty = read(settings=settings), read("2030-01-01T00:00", settings=settings)
    assert len(full) > 0 and len(empty) == 0
    for frame in (full, empty):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {c.name: c.dtype for c in frames.COLUMNS[kind]}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["episodes", "calls", "results"])
def test_parts_of_a_stream_are_the_whole_frame(kind: frames.Kind, settings: Settings) -> None:
    parts = list(frames.stream(kind, rows=5, settings=settings))
    assert [len(part) for part in parts[:-1]] == [5] * (len(parts) - 1)
    whole = getattr(frames, kind)(settings=settings)
    pandas.testing.assert_frame_equal(pandas.concat(parts, ignore_index=True), whole)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "trades"}, "no frame 'trades'"),
        ({"kind": "scores", "rows": 0}, "rows is 0: give 1 or more"),
        ({"kind": "scores", "first": "today"}, "is not a window"),
        ({"kind": "scores", "first": NEXT, "end": WINDOW}, "runs backwards"),
    ],
)
def test_a_wrong_question_is_refused_in_a_sentence(given: dict[str, Any], sentence: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match=sentence):
        next(frames.stream(**given, settings=settings))


@pytest.mark.long
def test_the_notebook_of_the_docs_runs(framed: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", framed.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    names["plt"].close("all")
    assert names["gains"]["v1.0.0"].mean() == 8
    assert names["tokens"]["scripted/momentum"] > 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"score-by-pnl.png", "changes.png", "gains.png"}
