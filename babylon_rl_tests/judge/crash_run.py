"""What a process of a crash test runs: one scoring, from beginning to end or to the signal that ends it."""

import signal
import sys
from datetime import datetime

from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl_tests.scored import score_windows

INTERRUPTED = 42


def run_scoring(url: str, windows: list[str], settings: Settings, now: datetime) -> None:
    """Score some hours."""
    with connect(url, autocommit=True) as connection:
        score_windows(connection, windows, settings, now)


def run_interruptible(url: str, windows: list[str], settings: Settings, now: datetime) -> None:
    """Score some hours in a step of Dagster, which turns signals into an exception of its own; exits with INTERRUPTED by that."""
    import dagster as dg

    @dg.op
    def score() -> None:
        run_scoring(url, windows, settings, now)

    @dg.job(executor_def=dg.in_process_executor)
    def scoring() -> None:
        score()

    try:
        scoring.execute_in_process()
    except dg.DagsterExecutionInterruptedError:
        sys.exit(INTERRUPTED)


def run_until_ctrl_c(url: str, windows: list[str], settings: Settings, now: datetime) -> None:
    """Score some hours as a command does; exits with INTERRUPTED on SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_scoring(url, windows, settings, now)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
