"""Command ``judge calibrate``: compares the judge's ranks with agents of known skill."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, say, table
from babylon_rl.settings import Settings, load_settings
from babylon_rl.windows import utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from babylon_rl.store.judge_report import JudgeAgreement

COLUMNS = ("agent", "expected $/h", "+-", "came $/h", "score", "rank")


def register(judge: typer.Typer) -> None:
    """Add the command to the group ``judge``."""
    judge.command("calibrate")(calibrate)


def calibrate(
    hours: Annotated[int, typer.Option(min=2, max=168, help="Hours to play and judge; a language model is asked for each.")] = 24,
    judge: Annotated[str | None, typer.Option(help="Any litellm model name, or heuristic. Default: JUDGE_MODEL.")] = None,
    orders: Annotated[int | None, typer.Option(min=1, help="Orders in which each group is shown. Default: JUDGE_ORDERS.")] = None,
    markets: Annotated[int, typer.Option(min=2, help="Markets over which the agents' skill is measured.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the hours; the same seed gives the same hours.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Does the judge agree with the market? Rank correlation of its scores with what agents of known skill earn on average."""
    changed = {"judge_model": judge, "judge_orders": orders}
    settings = load_settings(**{name: value for name, value in changed.items() if value is not None})
    found = _measured(settings, hours, markets, seed)
    emit(found.document, lambda out: _render(out, found), as_json)
    if found.not_judged:
        say(f"{found.not_judged} of {hours} hours have no score; the same command goes on with them.")


def _measured(settings: Settings, hours: int, markets: int, seed: int) -> "JudgeAgreement":
    from babylon_rl.evaluation.judge_agreement import calibration_name, measure
    from babylon_rl.store.database import open_database
    from babylon_rl.store.judge_report import write_judge_agreement
    from babylon_rl.store.migrate import require_migrated
    from babylon_rl.store.scratch import scratch_database

    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        with scratch_database(settings.home, calibration_name(seed)) as scratch, progress_of_parts() as tell:
            with scratch.database.connect(autocommit=True) as connection:
                found = measure(connection, settings, utc_now(), hours=hours, skill_markets=markets, seed=seed, on_progress=tell)
            with database.connect(autocommit=True) as connection:
                write_judge_agreement(connection, found)
            # Unfinished hours keep their scratch database, so that the same command resumes.
            scratch.keep = found.not_judged > 0
    return found


def _render(out: "Console", found: "JudgeAgreement") -> None:
    rows: list[list[Any]] = [
        [row["name"], _number(row["expected"], 0), _number(row["standardError"], 1, sign=False), _number(row["realized"], 0),
         _number(row["score"], 3, sign=False), _number(row["rank"], 1, sign=False)]
        for row in found.rows
    ]  # fmt: skip
    shown = "" if found.orders == 1 else f", {found.orders} orders"
    out.print(table(f"{found.judge} {found.judge_version}{shown}: {found.hours} hours of {found.agents} agents", list(COLUMNS), rows))
    out.print()
    compared = [
        ["scores with expected P&L", *_cells(found.expected), ""],
        ["scores with the P&L that came", *_cells(found.realized), ""],
        ["the P&L that came with expected P&L", *_cells(found.money), "what counting money alone reaches"],
        ["first less third", *_cells(found.over_money), "what the judge sees beyond the money"],
    ]
    title = f"Rank correlation within an hour (Spearman), mean over {found.hours} hours"
    out.print(table(title, ["", "mean", "95 %", ""], compared))
    if found.without_spread:
        out.print(f"{found.without_spread} hours got one score for all and count as 0.", markup=False)


def _cells(ends: "Sequence[float]") -> list[str]:
    mean, low, high = ends
    return [f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"]


def _number(value: float | None, digits: int, *, sign: bool = True) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
