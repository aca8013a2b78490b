"""Command ``benchmark leaderboard``: ranks versions, base and scripts from stored results."""

from pathlib import Path
from typing import Annotated

import typer

from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.settings import load_settings

PlotOption = Annotated[Path | None, typer.Option("--plot", help="A PNG file for the picture.")]


def leaderboard(plot: PlotOption = None, as_json: JsonOption = False) -> None:
    """Rank all versions, the base and every agent by what they earned in the gate's markets; nothing is asked of a model."""
    from babylon_rl.evaluation.leaderboard import COLUMNS, cells, leaderboard_png
    from babylon_rl.evaluation.leaderboard import leaderboard as ranked
    from babylon_rl.evaluation.report import write_plot
    from babylon_rl.store.database import open_database
    from babylon_rl.store.migrate import require_migrated

    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        with database.connect() as connection:
            board = ranked(connection, settings)
    if plot is not None:
        say(f"The picture is {write_plot(leaderboard_png(board), plot)}.")
    title = f"{board.markets} unseen markets, mean P&L with its 95 % interval"
    rows = [cells(line, board.reference) for line in board.lines]
    emit(board.document, lambda out: out.print(table(title, list(COLUMNS), [list(row) for row in rows])), as_json)
    for one in board.unranked:
        say(f"{one.version} is not ranked. {one.reason}")
