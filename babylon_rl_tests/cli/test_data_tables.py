"""What people read, on a terminal of 80 columns and on a wide one."""

from io import StringIO

import pytest
from rich.console import Console

from babylon_rl.cli.data import EPISODES, WINDOWS, episode_rows, outcome_parts, rejected_parts, window_row
from babylon_rl.cli.output import Table, show
from babylon_rl.episodes.reading import read_window, summary
from babylon_rl.market.outcomes import PredictionOutcome, StockOutcome, WindowOutcomes, read_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.types import Rejection, WindowReading
from babylon_rl_tests.rows import AFTER

WINDOW = "2025-10-29T16:00"


def screen(columns: int) -> Console:
    return Console(file=StringIO(), width=columns, highlight=False)


def lines(out: Console) -> list[str]:
    """What was printed; nothing of it may be cut off."""
    text = out.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    assert "…" not in text
    assert all(len(line) <= out.width for line in text.splitlines())
    return text.splitlines()


@pytest.fixture
def reading(sample_database: Database, settings: Settings) -> WindowReading:
    with sample_database.connect() as connection:
        return read_window(connection, WINDOW, settings, texts=False)


def test_hours_fit_80_columns_and_show_their_sources_on_more(reading: WindowReading) -> None:
    narrow, wide = screen(80), screen(120)
    for out in (narrow, wide):
        show([Table(WINDOWS, [window_row(summary(reading, AFTER))])], out)
    assert lines(narrow)[1].split() == [WINDOW, "ready", "146", "138", "8", "12", "12", "11.48"]
    assert lines(wide)[0].split()[-6:] == ["embedded", "logs", "synthetic", "mean", "P&L", "$"]


def test_episodes_fit_80_columns(reading: WindowReading) -> None:
    out = screen(80)
    show([Table(EPISODES, episode_rows(reading))], out)
    assert len(lines(out)) == 13
    assert {line.split()[0] for line in lines(out)[1:]} == {episode.agent_id for episode in reading.episodes}


def test_rejected_rows_end_with_a_count_by_reason() -> None:
    out = screen(80)
    found = [
        Rejection(WINDOW, f"24195541928230928{n}", reason, "word " * 30) for n, reason in enumerate(["no_steps", "benchmark", "no_steps"])
    ]
    rows = [{"trajectoryId": r.trajectory_id, "window": r.window, "reason": r.reason, "detail": r.detail} for r in found]
    show(rejected_parts(found, rows, 40), out)
    assert lines(out)[-1] == "3 of 40 rows rejected: 1 benchmark, 2 no_steps."
    assert sum(line.startswith(WINDOW) for line in lines(out)) == 3


def test_outcomes_show_news_flags_and_the_market_as_a_whole() -> None:
    stock = StockOutcome(
        ticker="OPENLIE", organization_id="openlie", name="OpenLIE", start_price=1, end_price=2, change_percent=100, sentiment="BULLISH",
        news=("It rose.", "It rose.", "It was sold.", "It was bought.", "It fell.", "It rose again."), flags=("start_from_first_price",),
    )  # fmt: skip
    asked = PredictionOutcome(
        market_id="m1",
        question_number=None,
        question="Will it?",
        start_probability=0.5,
        end_probability=0.6,
        outcome="YES",
        news=("It did.",),
    )
    out = screen(80)
    show(outcome_parts(WindowOutcomes(WINDOW, (stock,), (asked,))), out)
    said = [" ".join(line.split()) for line in lines(out)]
    for line in (
        "OPENLIE It rose. (2 times)",
        "and 2 more; --json has them all",
        "m1 It did.",
        "OPENLIE is flagged: start from first price.",
    ):
        assert line in said
    assert said[-1] == "The market as a whole: mean change +100.00 %, volatility 0.00 %."


def test_outcomes_of_the_recorded_game_fit_80_columns(sample_database: Database, settings: Settings) -> None:
    out = screen(80)
    with sample_database.connect() as connection:
        show(outcome_parts(read_outcomes(connection, WINDOW, settings)), out)
    said = lines(out)
    assert sum(line.split()[:1] == ["PALANTYRANT"] for line in said) == 2
    assert any("mean change -0.63 %" in line for line in said)
