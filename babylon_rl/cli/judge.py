"""Command group `judge`: quarantined groups, and judging them again."""

from typing import Annotated

import typer

from babylon_rl.cli import judge_calibrate, judge_report
from babylon_rl.cli.options import WindowsArgument
from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.errors import UsageError
from babylon_rl.settings import load_settings
from babylon_rl.windows import window_start

judge = typer.Typer(help="The judge: what it could not score, how far it can be trusted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to ``app``."""
    judge_calibrate.register(judge)
    judge_report.register(judge)
    app.add_typer(judge, name="judge")


@judge.command("quarantine")
def quarantine(windows: WindowsArgument = None, as_json: JsonOption = False) -> None:
    """Groups whose answers could not be used, with the tries (--json: the transcripts)."""
    from babylon_rl.store.database import open_database
    from babylon_rl.store.scores import read_quarantined

    for window in windows or ():
        window_start(window)
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        groups = read_quarantined(connection, windows)
    if not groups:
        say("No group is in quarantine.")
    document = {
        "quarantined": [
            {
                "window": q.window,
                "judge": q.judge,
                "reason": q.reason,
                "at": f"{q.at.isoformat(timespec='seconds')}Z",
                "transcript": q.transcript,
            }
            for q in groups.values()
        ]
    }
    rows = [[q.window, q.judge, len(q.transcript), q.reason] for q in groups.values()]
    emit(document, lambda out: out.print(table(None, ["window", "judge", "tries", "reason"], rows)), as_json)


@judge.command("retry")
def retry(
    windows: WindowsArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every group in quarantine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take groups out of quarantine; the next `babylon-rl score`, or the next batch that wants them, asks anew.

    An hour that is in none is named, and fails nothing.
    """
    from babylon_rl.judge.plan import release_quarantined
    from babylon_rl.store.database import open_database

    for window in windows or ():
        window_start(window)
    if bool(windows) == everything:
        raise UsageError("Name the hours, or give --all.")
    with open_database(load_settings(), prepare=False) as database, database.connect(autocommit=True) as connection:
        released = release_quarantined(connection, windows)
    # Hours that were not in quarantine are reported, not refused.
    others = sorted(set(windows or ()) - set(released))
    if others:
        say(f"Not in quarantine, nothing to retry: {', '.join(others)}. `babylon-rl score` judges hours that wait or have no scores.")
    elif not released:
        say("No group is in quarantine.")
    rows = [[window] for window in released]
    emit(
        {"released": released, "notQuarantined": others},
        lambda out: out.print(table(None, ["out of quarantine"], rows)) if rows else None,
        as_json,
    )
