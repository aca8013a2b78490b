"""Rows as pandas DataFrames by window range, for notebooks.

Columns have the names of the JSON output, COLUMNS their dtypes and meanings; a frame without rows has them too. Episodes and scores are
those of the last reading of an hour (``babylon-rl train`` and the automation read hours), outcomes and calls come from the game's tables
as they are now. Settings are those of the process: DATABASE_URL, or the embedded database of BABYLON_RL_HOME, which stays open until the
process ends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from babylon_rl.errors import UsageError
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store import benchmarks, live_usage
from babylon_rl.store import scores as scores_store
from babylon_rl.store.batches import Batch, read_batches
from babylon_rl.store.columns import camel, document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import process_database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.store.windows import chunks, stored_episodes
from babylon_rl.training.curves import CURVES, optimizer_steps
from babylon_rl.training.export import records
from babylon_rl.training.export.hours import Selection, Splits, read_hours
from babylon_rl.windows import window_range, window_start

if TYPE_CHECKING:
    from pandas import DataFrame

Kind = Literal["episodes", "scores", "outcomes", "batches", "steps", "results", "calls", "gateway_calls"]
ROWS_AT_ONCE = 50_000
_STRING, _INTEGER, _NUMBER, _BOOLEAN, _TIME, _OBJECT = "string", "Int64", "Float64", "boolean", "datetime64[us, UTC]", "object"
# Types of the export's columns, as its Parquet files have them, in pandas; JSON stays text.
_OF_EXPORT = {"string": _STRING, "int64": _INTEGER, "float64": _NUMBER, "bool": _BOOLEAN, "json": _STRING}


class FrameColumn(NamedTuple):
    """Column of a frame: name, pandas dtype and meaning."""

    name: str
    dtype: str
    meaning: str


_HOUR = (FrameColumn("window", _STRING, "the hour in UTC, `YYYY-MM-DDTHH:00`"), FrameColumn("windowStart", _TIME, "its first moment"))
_AGENT = FrameColumn("agentId", _STRING, "the agent; window and agentId together name an episode")
COLUMNS: dict[Kind, tuple[FrameColumn, ...]] = {
    "episodes": (
        *_HOUR,
        _AGENT,
        FrameColumn("trajectoryIds", _OBJECT, "list of the rows that it was stitched from, in order"),
        FrameColumn("steps", _INTEGER, "steps"),
        FrameColumn("startPnl", _NUMBER, "P&L at its first step, in dollars"),
        FrameColumn("endPnl", _NUMBER, "P&L at its end, in dollars"),
        FrameColumn("windowPnl", _NUMBER, "the difference of both"),
        FrameColumn("wins", _INTEGER, "trajectories that earned"),
        FrameColumn("losses", _INTEGER, "trajectories that lost"),
        FrameColumn("winRate", _NUMBER, "wins / (wins + losses); missing when both are 0"),
        FrameColumn("trades", _INTEGER, "trades carried out"),
        FrameColumn("posts", _INTEGER, "posts created"),
        FrameColumn("actions", _OBJECT, "dict: steps by action type"),
        FrameColumn("messageSources", _OBJECT, "dict: trajectories by source of their LLM calls"),
        FrameColumn("usable", _BOOLEAN, "enough steps for a group"),
        FrameColumn("used", _BOOLEAN, "consumed by a training"),
        FrameColumn("trainableSequences", _INTEGER, "LLM calls that can train"),
    ),
    "scores": (
        *_HOUR,
        _AGENT,
        FrameColumn("score", _NUMBER, "the judge's score within the hour's group, 0 to 1"),
        FrameColumn("rank", _INTEGER, "1 is best; equal scores share the better rank"),
        FrameColumn("advantage", _NUMBER, "(score - group mean) / population standard deviation"),
        FrameColumn("disagreement", _NUMBER, "mean difference between orders; 0 of the heuristic"),
        FrameColumn("reasoning", _STRING, "the judge's words"),
        FrameColumn("judge", _STRING, "the judge's model, or `heuristic`"),
        FrameColumn("judgeVersion", _STRING, "its version"),
        FrameColumn("groupSize", _INTEGER, "episodes of the group"),
        FrameColumn("groupMean", _NUMBER, "mean score of the group"),
        FrameColumn("groupSpread", _NUMBER, "population standard deviation of the group's scores"),
    ),
    "outcomes": (
        *_HOUR,
        FrameColumn("kind", _STRING, "`stock` or `prediction`"),
        FrameColumn("subject", _STRING, "organization id, or market id"),
        FrameColumn("name", _STRING, "the organization's name, or the question"),
        FrameColumn("ticker", _STRING, "ticker; missing for a prediction"),
        FrameColumn("startValue", _NUMBER, "price in dollars, or probability 0 to 1, at the start of the hour"),
        FrameColumn("endValue", _NUMBER, "the same at its end"),
        FrameColumn("changePercent", _NUMBER, "change of the price in percent; missing for a prediction"),
        FrameColumn("sentiment", _STRING, "BULLISH, BEARISH or NEUTRAL; missing for a prediction"),
        FrameColumn("outcome", _STRING, "YES, NO or UNRESOLVED; missing for a stock"),
        FrameColumn("news", _OBJECT, "list of the hour's events about it"),
        FrameColumn("flags", _OBJECT, "list of names of unusual values"),
    ),
    "batches": (
        FrameColumn("batchId", _STRING, "the batch"),
        FrameColumn("state", _STRING, "its state (reference: life of a batch)"),
        FrameColumn("version", _STRING, "the version that it registers"),
        FrameColumn("parentVersion", _STRING, "the version that it continues; missing: the base"),
        FrameColumn("baseModel", _STRING, "the line"),
        FrameColumn("backend", _STRING, "the trainer"),
        FrameColumn("windows", _OBJECT, "list of its hours, newest first"),
        FrameColumn("trajectories", _INTEGER, "trajectories that it holds or consumed"),
        FrameColumn("attempt", _INTEGER, "runs that have begun it"),
        FrameColumn("loss", _NUMBER, "mean training loss"),
        FrameColumn("createdAt", _TIME, "when it was frozen"),
        FrameColumn("startedAt", _TIME, "when its training began"),
        FrameColumn("completedAt", _TIME, "when it was completed"),
        FrameColumn("error", _STRING, "why it failed, or why it waits"),
    ),
    "steps": (
        FrameColumn("batchId", _STRING, "the batch"),
        FrameColumn("version", _STRING, "the version that it registers"),
        FrameColumn("iteration", _INTEGER, "the iteration, from 1"),
        FrameColumn("step", _INTEGER, "the optimizer step, from 1, over all iterations"),
        *(FrameColumn(name, _NUMBER, curve.meaning) for name, curve in CURVES.items()),
        FrameColumn("trainableTokens", _INTEGER, "tokens trained in the iteration so far"),
    ),
    "results": (
        FrameColumn("model", _STRING, "the player: a version, `base`, or a strategy"),
        FrameColumn("identity", _STRING, "hash of the weights that played"),
        FrameColumn("snapshot", _STRING, "the unseen market; two players of one snapshot are a pair"),
        FrameColumn("pnlUsd", _NUMBER, "P&L of the hour, in dollars"),
        FrameColumn("wins", _INTEGER, "trades that earned"),
        FrameColumn("losses", _INTEGER, "trades that lost"),
        FrameColumn("trades", _INTEGER, "trades carried out"),
        FrameColumn("decisions", _INTEGER, "decisions asked for"),
        FrameColumn("invalid", _INTEGER, "of them, answers that were no action"),
        FrameColumn("refused", _INTEGER, "of them, orders that the exchange refused"),
        FrameColumn("actions", _OBJECT, "dict: decisions by `buy`, `sell`, `hold`"),
        FrameColumn("predictions", _INTEGER, "decisions that traded"),
        FrameColumn("predictionsRight", _INTEGER, "of them, in the direction of the market"),
        FrameColumn("equityUsd", _OBJECT, "list: P&L after every tick, in dollars"),
        FrameColumn("playedAt", _TIME, "when it was played; its hour decides whether it is in the range"),
    ),
    "calls": (
        *_HOUR,
        *(FrameColumn(name, _OF_EXPORT.get(kind, _OBJECT), meaning) for name, kind, meaning in records.COLUMNS[2:]),
    ),
    "gateway_calls": (
        FrameColumn("callId", _STRING, "the call; the same in llm_call_logs where it was recorded"),
        FrameColumn("at", _TIME, "when it was answered; its hour decides whether it is in the range"),
        FrameColumn("agentId", _STRING, "the agent, where it named itself"),
        FrameColumn("keyName", _STRING, "the client's key"),
        FrameColumn("chosenVersion", _STRING, "the version that routing chose; missing: the base"),
        FrameColumn("version", _STRING, "the version that answered; missing: the base"),
        FrameColumn("arm", _STRING, "the arm of the rollout or A/B test"),
        FrameColumn("fallback", _STRING, "why the base answered instead"),
        FrameColumn("status", _INTEGER, "HTTP status"),
        FrameColumn("latencyMs", _NUMBER, "milliseconds to the end of the answer"),
        FrameColumn("firstTokenMs", _NUMBER, "milliseconds to the first token of a stream"),
        FrameColumn("promptTokens", _INTEGER, "tokens of the prompt"),
        FrameColumn("completionTokens", _INTEGER, "tokens of the answer"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Source:
    connection: Connection
    first: str
    end: str
    ranged: bool
    settings: Settings

    @property
    def windows(self) -> list[str]:
        """Hours of the range that hold rows."""
        return windows_with_rows(self.connection, self.first, self.end)

    @property
    def moments(self) -> tuple[datetime, datetime]:
        """The range's first moment, and the first one after it."""
        return window_start(self.first), window_start(self.end)


def episodes(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Episodes of the hours from ``first`` (inclusive) to ``end`` (exclusive), as last read. Ordered by window, then P&L, highest first."""
    return _whole("episodes", first, end, settings)


def scores(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Scores of episodes, ordered by window, then rank."""
    return _whole("scores", first, end, settings)


def outcomes(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Stocks and questions of the hours that hold trajectories, ordered by window."""
    return _whole("outcomes", first, end, settings)


def batches(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Batches with an hour in the range (without a range all), newest first."""
    return _whole("batches", first, end, settings)


def steps(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Optimizer steps of the batches with an hour in the range (without a range all), oldest batch first."""
    return _whole("steps", first, end, settings)


def results(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Benchmark results by player and market, played in the range, in time order."""
    return _whole("results", first, end, settings)


def calls(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Trainable LLM calls as served, with scores: the records of ``babylon-rl export --all``."""
    return _whole("calls", first, end, settings)


def gateway_calls(first: str | None = None, end: str | None = None, *, settings: Settings | None = None) -> "DataFrame":
    """Routed gateway calls of the range in time order, without texts."""
    return _whole("gateway_calls", first, end, settings)


def stream(
    kind: Kind, first: str | None = None, end: str | None = None, *, rows: int = ROWS_AT_ONCE, settings: Settings | None = None
) -> "Iterator[DataFrame]":
    """Yield the frame of ``kind`` in parts of at most ``rows`` rows, which bounds memory.

    Nothing without rows.

    Raises:
        UsageError: an unknown kind, fewer than one row, a malformed window id, or a range that runs backwards.
    """
    if kind not in _READERS:
        raise UsageError(f"There is no frame {kind!r}: take one of {', '.join(_READERS)}.")
    if rows < 1:
        raise UsageError(f"rows is {rows}: give 1 or more.")
    if (edge := end if first is None else first) is not None:
        next(window_range(edge, end or edge), None)  # refuses a malformed hour, and a range that runs backwards
    settings = settings or load_settings()
    # Autocommit: the caller may take long between two parts.
    with process_database(settings).connect(autocommit=True) as connection:
        source = _Source(connection, first or FIRST_POSSIBLE, end or LAST_POSSIBLE, edge is not None, settings)
        records = _READERS[kind](source)
        while part := list(islice(records, rows)):
            yield _frame(part, COLUMNS[kind])


def _whole(kind: Kind, first: str | None, end: str | None, settings: Settings | None) -> "DataFrame":
    import pandas

    parts = list(stream(kind, first, end, settings=settings))
    return pandas.concat(parts, ignore_index=True) if parts else _frame([], COLUMNS[kind])


def _frame(rows: Sequence[Mapping[str, Any]], columns: Iterable[FrameColumn]) -> "DataFrame":
    import pandas

    # The database's times are naive UTC; a frame names the zone, by its dtype.
    return pandas.DataFrame({column.name: pandas.Series([row[column.name] for row in rows], dtype=column.dtype) for column in columns})


def _hour(window: str) -> dict[str, Any]:
    return {"window": window, "windowStart": window_start(window)}


def _episode_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for some in chunks(source.windows):
        for window, held in stored_episodes(source.connection, some).items():
            for episode in held:
                ids = list(episode.trajectory_ids)
                yield {**msgspec.to_builtins(episode), **_hour(window), "trajectoryIds": ids, "used": episode.used}


def _score_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for some in chunks(source.windows):
        for window, group in sorted(scores_store.read(source.connection, some).items()):
            facts = {"judge": group.judge, "judgeVersion": group.judge_version, "groupSize": group.group_size}
            facts |= {"groupMean": group.mean, "groupSpread": group.spread}
            for score in group.scores:
                yield {**msgspec.to_builtins(score), **_hour(window), **facts}


def _outcome_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for some in chunks(source.windows):
        for window, market in read_many_outcomes(source.connection, some, source.settings).items():
            for stock in market.stocks:
                yield _hour(window) | {
                    "kind": "stock", "subject": stock.organization_id, "name": stock.name, "ticker": stock.ticker,
                    "startValue": stock.start_price, "endValue": stock.end_price, "changePercent": stock.change_percent,
                    "sentiment": stock.sentiment, "outcome": None, "news": list(stock.news), "flags": list(stock.flags),
                }  # fmt: skip
            for asked in market.predictions:
                yield _hour(window) | {
                    "kind": "prediction", "subject": asked.market_id, "name": asked.question, "ticker": None,
                    "startValue": asked.start_probability, "endValue": asked.end_probability, "changePercent": None,
                    "sentiment": None, "outcome": asked.outcome, "news": list(asked.news), "flags": list(asked.flags),
                }  # fmt: skip


def _batches(source: _Source) -> list[Batch]:
    found = read_batches(source.connection, limit=None)
    return [b for b in found if not source.ranged or any(source.first <= window < source.end for window in b.windows)]


def _batch_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for batch in _batches(source):
        yield {camel(field.name): getattr(batch, field.name) for field in fields(batch)} | {"windows": list(batch.windows)}


def _step_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for batch in reversed(_batches(source)):
        yield from optimizer_steps(source.connection, batch)


def _result_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for model, identity, played_at, result in benchmarks.played_results(source.connection, *source.moments):
        yield document_of(result) | {"model": model, "identity": identity, "playedAt": played_at}


def _call_rows(source: _Source) -> Iterator[dict[str, Any]]:
    for hour in read_hours(source.connection, source.windows, source.settings, Splits(), Selection(everything=True)):
        for record in hour.records():
            # Schemas differ from call to call, so they are text, as in the export.
            form = None if record.response_format is None else msgspec.json.encode(record.response_format).decode()
            yield {**msgspec.to_builtins(record), **_hour(hour.window), "responseFormat": form}


_READERS: dict[Kind, Callable[[_Source], Iterator[dict[str, Any]]]] = {
    "episodes": _episode_rows, "scores": _score_rows, "outcomes": _outcome_rows, "batches": _batch_rows, "steps": _step_rows,
    "results": _result_rows, "calls": _call_rows, "gateway_calls": lambda source: live_usage.read_calls(source.connection, *source.moments),
}  # fmt: skip
