"""docs/howto/recording.md: its agent runs as it stands there, and its SQL gives a call that is read as it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now, window_of
from babylon_rl_tests.rows import WINDOW, insert, make_step, make_trajectory

TEXT = (Path(__file__).parents[2] / "docs" / "howto" / "recording.md").read_text()
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "qwen/qwen3-32b",
    "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."},
        "logprobs": {"content": [{"token": "Yes.", "logprob": -0.25, "bytes": None, "top_logprobs": []}]},
    }],
}  # fmt: skip


def blocks(language: str) -> Iterator[str]:
    return iter(re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL))


class Endpoint:
    """An OpenAI client as the example uses it, with answers of the library's own type."""

    def __init__(self) -> None:
        self.chat = SimpleNamespace(completions=self)

    def create(self, **asked: Any) -> Any:
        return pytest.importorskip("openai.types.chat").ChatCompletion.model_validate(ANSWER)


def test_the_agent_of_the_docs_records_its_prompts(game: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", game.url)
    names: dict[str, Any] = {}
    exec(next(blocks("python")), names)
    market = SimpleNamespace(balance=1000.0, pnl=5.0, positions=1, prices={"OPENLIE": 101.25}, buy=lambda: True)
    before = window_of(utc_now())
    names["play"]("agent-1", [market, market], Endpoint(), "qwen/qwen3-32b")
    with game.connect() as connection:
        hours = {before, window_of(utc_now())}
        sequences = [one for hour in hours for episode in read_window(connection, hour, settings).episodes for one in episode.sequences]
    assert len(sequences) == 2
    assert {one.messages[1]["content"] for one in sequences} == {"Prices: {'OPENLIE': 101.25}. Buy?"}
    assert sequences[0].logprobs == [{"token": "Yes.", "logprob": -0.25}]


def test_the_tasks_of_the_docs_run(game: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", game.url)
    _, example = blocks("python")
    exec(example, {})
    with game.connect() as connection:
        assert connection.execute('SELECT "userPrompt", response FROM llm_call_logs').fetchall() == [("Buy?", "No.")]


def test_the_sql_of_the_docs_gives_a_call_that_is_read_from_the_log(database: Database, settings: Settings) -> None:
    with database.connect() as connection:
        insert(connection, "trajectories", [make_trajectory("248027329408794624", steps=[make_step()])])
        connection.execute(next(blocks("sql")).encode())
        (sequence,) = read_window(connection, WINDOW, settings).episodes[0].sequences
    assert (sequence.source, sequence.response, sequence.model_version) == ("llm_call_logs", '{"action":"hold"}', "v1.0.3")
    assert sequence.messages == [{"role": "system", "content": "You trade."}, {"role": "user", "content": "What now?"}]
    assert sequence.logprobs == [{"token": '{"', "logprob": -0.5, "tokenId": 17}]
