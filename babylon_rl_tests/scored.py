"""Scores of hours as the graph makes them: read, with their markets, then judged."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge import plan, scoring
from babylon_rl.judge.consensus import ScoringResult
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection


def read_hours(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> None:
    """Store episodes and outcomes of some hours."""
    windows = list(windows)
    sync_windows(connection, windows, settings, now)
    sync_outcomes(connection, windows, settings, now)


def note_changes(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime = datetime(2026, 1, 1)) -> None:
    """Read some hours again, and note what has changed, as the graph's assets do."""
    windows = list(windows)
    read_hours(connection, windows, settings, now)
    plan.note_changes(connection, windows, settings)


def score_stale(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> ScoringResult:
    """Read some hours, and judge them anew where rules have changed too, as `score --stale` does."""
    return score_windows(connection, windows, settings, now, stale=True)


def score_windows(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime, **options: Any) -> ScoringResult:
    """Read some hours and judge them."""
    windows = list(windows)
    read_hours(connection, windows, settings, now)
    return scoring.score_windows(connection, windows, settings, now, **options)
