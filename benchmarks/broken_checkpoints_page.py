"""docs/evidence/gate.md and its picture: the gate's verdict on every checkpoint, against the base and against a better version."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from babylon_rl.evaluation.gate import COLLAPSE
from babylon_rl.reporting import plots
from babylon_rl.reporting.numbers import markdown_table

if TYPE_CHECKING:
    from benchmarks.broken_checkpoints import Judged

COLUMNS = ("checkpoint", "P&L", "over the reference", "BUY / SELL / HOLD", "gate, markets", "decided by")
_COLOURS = {"pass": "#2a9d6f", "fail": "#c8553d", "inconclusive": "#b8862b", "not_compared": "#888888"}


def page(first: Sequence["Judged"], second: Sequence["Judged"], picture_file: str) -> str:
    """The page as Markdown; ``picture_file`` is where its picture lies."""
    tried = (*first[1:], *second)
    passed, base = sum(one.report.decision == "pass" for one in tried), _other(first[0], "base")
    words = "\n".join(f"* **{one.name}** ({one.report.version}): {one.words}" for one in first)
    return f"""# The gate on broken checkpoints

**{passed} of {len(tried)} attempts with a broken checkpoint passed; the better one: {first[0].report.decision}.**

Made by `python -m benchmarks.broken_checkpoints --better DIR`, where DIR is a checkpoint, or the state directory of a demo. Each is a LoRA
adapter of the packaged model that goes the way of a trained version:

{words}

Dollars of a market hour with 95 % intervals over unseen markets. Differences are paired market by market and hold over all looks of
the gate; each row is over its own number of markets. [The gate's conditions](../decisions/0007-gate.md) have the names in the last column.

## Nobody is deployed: the reference is the base

{table(first)}

The base in the first row's markets: {_interval(base, "pnl", "low", "high")}, BUY / SELL / HOLD {_actions(base)}.

![Mean P&L of every checkpoint with its 95 % interval, coloured by the gate's decision]({picture_file})
{_deployed(second)}
## The purpose of each condition

* `no_collapse`: a version that always holds loses nothing, and so beats a base that loses. More than {COLLAPSE:.0%} of one
  action fails.
* `better_than_nothing`: random weights mix their actions and beat a losing base by trading less. Doing nothing must be beaten as well.
* `inconclusive` is no pass: such a version is not released. With `AUTO_PROMOTE` the next training may continue from it
  ([0015](../decisions/0015-releases.md)). The report says how many markets would decide.
{_let_through(tried)}"""


def _let_through(tried: Sequence["Judged"]) -> str:
    """Who got past the gate although it is broken, said as plainly as the rest."""
    passed = [f"{one.name} (reference {one.report.reference}): {one.report.reason}" for one in tried if one.report.decision == "pass"]
    return "".join(f"\n**A broken checkpoint passed.** {words}\n" for words in passed)


def table(judged: Sequence["Judged"]) -> str:
    """Everybody of one round, as Markdown."""
    lines = [_line(one) for one in judged]
    return markdown_table(COLUMNS, lines)


def _line(one: "Judged") -> list[str]:
    row = one.row
    return [
        one.name,
        _interval(row, "pnl", "low", "high"),
        _interval(row, "improvement", "improvementLow", "improvementHigh"),
        _actions(row),
        f"{one.report.decision}, {row['markets']}",
        _deciding(one),
    ]


def _deciding(one: "Judged") -> str:
    """Names of the conditions that decided, without those of the reference."""
    decision = one.report.decision
    deciding = (check["name"] for check in one.row["checks"] if check["found"] == decision)
    return ", ".join(f"`{name}`" for name in deciding if decision != "pass" or name == "improvement")


def _actions(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[share]:.0%}" for share in ("buyShare", "sellShare", "holdShare"))


def _interval(row: dict[str, Any], mean: str, low: str, high: str) -> str:
    return f"{row[mean]:+.0f} ({row[low]:+.0f} to {row[high]:+.0f})"


def _other(one: "Judged", model: str) -> dict[str, Any]:
    return next(row for row in one.report.rows if row["model"] == model)


def _deployed(second: Sequence["Judged"]) -> str:
    if not second:
        return ""
    return f"""
## The better one is deployed: the reference is {second[0].report.reference}

{table(second)}
"""


def picture(judged: Sequence["Judged"]) -> bytes:
    """P&L of everybody and of the base, as a PNG of some 20 kB."""
    figure = plots.new_figure(7.5, 0.42 * len(judged) + 1.5, 96)
    axes = figure.subplots()
    drawn = [(one.name, one.row, one.report.decision) for one in judged] + [("base", _other(judged[0], "base"), "")]
    for place, (_, row, decision) in enumerate(drawn):
        colour = _COLOURS.get(decision, "#3d3d3d")
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([row["pnl"]], [place], marker="o", color=colour)
        axes.annotate(
            decision.replace("_", " "),
            (row["high"], place),
            xytext=(8, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            color=colour,
        )
    axes.set_yticks(range(len(drawn)), [name for name, _, _ in drawn])
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.margins(x=0.14)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("dollars of a market hour, mean and 95 % interval", fontsize=8)
    plots.plain_axes([axes])
    figure.tight_layout()
    return plots.png_of(figure)
