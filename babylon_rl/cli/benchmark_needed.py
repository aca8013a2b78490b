"""``benchmark compare --effect USD``: number of snapshots needed to show a difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from babylon_rl.cli.output import table

if TYPE_CHECKING:
    from rich.table import Table

    from babylon_rl.evaluation.compare_results import ComparisonDocument

COLUMNS = ("A - B", "deviation between snapshots $", "between repeats $", "repeats", "snapshots needed", "played")


def needed(comparison: "ComparisonDocument", effect: float) -> list[dict[str, Any]]:
    """For every pair of agents, the snapshots needed to show a difference of ``effect`` dollars.

    With 80 % power, at a confidence shared among all pairs (Bonferroni). Pairs with fewer than two snapshots are left out. One row for a
    single play of each snapshot, and one for as many plays as there were. Null: no number is enough.
    """
    from babylon_rl.evaluation.compare_results import LEVEL, by_agent
    from babylon_rl.evaluation.statistics import snapshots_table, spread_of

    runs, rows = by_agent(comparison.runs), list[dict[str, Any]]()
    for pair in comparison.pairs:
        shared = [key for key in runs[pair.a] if key in runs[pair.b]]
        if pair.snapshots < 2:
            continue
        # Differences of runs that both agents played, grouped by snapshot.
        differences = [runs[pair.a][key].metrics.total_pnl - runs[pair.b][key].metrics.total_pnl for key in shared]
        spread = spread_of(differences, [snapshot for snapshot, _, _ in shared])
        repeats = sorted({1, round(pair.runs / pair.snapshots)})
        rows += [
            {"a": pair.a, "b": pair.b, "effect": effect, "between": spread.between, "within": spread.within, "repeats": size.repeats,
             "snapshots": size.snapshots, "power": size.power, "played": pair.snapshots}
            for size in snapshots_table([effect], spread, repeats=repeats, confidence=1 - LEVEL / len(comparison.pairs))
        ]  # fmt: skip
    return rows


def needed_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """A table of the rows of ``needed``."""
    lines = [
        [f"{row['a']} - {row['b']}", f"{row['between']:,.0f}", f"{row['within']:,.0f}", row["repeats"], row["snapshots"], row["played"]]
        for row in rows
    ]
    effect, power = (rows[0]["effect"], rows[0]["power"]) if rows else (0.0, 0.0)
    return table(f"Snapshots that show a difference of ${effect:,.0f} with {100 * power:.0f} % power", list(COLUMNS), lines)
