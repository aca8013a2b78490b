"""Asset ``leaderboard``: versions, base and scripts ranked, rebuilt with every benchmark."""

from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import asset, counts, embedded, results_table
from babylon_rl.assets.resources import Babylon
from babylon_rl.reporting.plots import Picture

# Of a row, what fits on a page; the Markdown has the intervals of differences.
SHOWN = {
    "place": "#", "model": "who", "pnl": "$/h", "interval": "95 % interval", "improvement": "vs base", "decision": "gate",
}  # fmt: skip


@asset(
    deps=["benchmark_report"],
    group_name="evaluation",
    code_version="1",
    columns={
        "place": ("integer", "1 earned the most"),
        "model": ("text", "A version, the base, or a script"),
        "pnl": ("double precision", "Dollars an hour, mean over the markets that all have played"),
        "improvement": ("double precision", "Dollars an hour above the base, paired market by market"),
        "decision": ("text", "What the gate decided on the version"),
    },
    says="Ranks all versions with the base, doing nothing, the news reader, the oracle and all strategies in the same unseen "
    "markets, from what the benchmark reports have kept.",
    when_red="the log of its run says why; it ranks again after the next report. Nothing waits for it.",
)
def leaderboard(babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.leaderboard import leaderboard as ranked
    from babylon_rl.evaluation.leaderboard import leaderboard_png, markdown
    from babylon_rl.evaluation.report import write_plot

    with babylon.connection() as connection:
        board = ranked(connection, babylon.settings)
    png = leaderboard_png(board)
    write_plot(png, babylon.settings.home / "benchmarks" / "leaderboard.png")
    rows = [line.document for line in board.lines]
    metadata = counts(
        len(rows), best_version=board.best, markets=board.markets, versions=len(board.versions), not_ranked=len(board.unranked)
    )
    metadata["rows"] = results_table(rows, SHOWN)
    metadata |= embedded([Picture("P&L with intervals", png)])
    metadata["leaderboard"] = dg.MetadataValue.md(markdown(board))
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(board.data_version))
