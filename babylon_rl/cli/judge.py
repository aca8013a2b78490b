"""Command group `judge`: quarantined groups, the report of its reliability and cost, its calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from babylon_rl.cli.options import FromOption, ToOption, WindowsArgument, named_range
from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed, progress_of_parts, say
from babylon_rl.errors import UsageError
from babylon_rl.evaluation.judge_agreement import calibration_name, measure
from babylon_rl.judge.plan import release_quarantined
from babylon_rl.judge.reliability.audit import AUDIT_GROUPS, report_with_audit
from babylon_rl.judge.reliability.plots import draw_plots
from babylon_rl.judge.reliability.report import default_range, report_document, report_rows
from babylon_rl.settings import load_settings
from babylon_rl.store.columns import document_of
from babylon_rl.store.database import open_database
from babylon_rl.store.judge_report import JudgeAgreement, write_judge_agreement
from babylon_rl.store.migrate import require_migrated
from babylon_rl.store.scores import read_quarantined
from babylon_rl.store.scratch import scratch_database
from babylon_rl.windows import utc_now, window_start

app = typer.Typer(name="judge", help="The judge: quarantined groups, reliability, privacy.", no_args_is_help=True)
QUARANTINED = (
    Column("window", "window"),
    Column("judge", "judge"),
    Column("tries", lambda row: len(row["transcript"])),
    Column("reason", "reason"),
)
PREFIX = "judge-report-"
CALIBRATION = ("agent", "expected $/h", "+-", "came $/h", "score", "rank")


@app.command("quarantine")
def quarantine(windows: WindowsArgument = None, as_json: JsonOption = False) -> None:
    """List quarantined groups with their tries. --json has the transcripts."""
    for window in windows or ():
        window_start(window)
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        groups = read_quarantined(connection, windows)
    if not groups:
        say("No group is in quarantine.")
    rows = [
        document_of(q, "window", "judge", "reason") | {"at": f"{q.at.isoformat(timespec='seconds')}Z", "transcript": q.transcript}
        for q in groups.values()
    ]
    emit({"quarantined": rows}, [Table(QUARANTINED, rows)], as_json)


@app.command("retry")
def retry(
    windows: WindowsArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every group in quarantine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take groups out of quarantine.

    The next `babylon-rl score`, or the next batch with these hours, asks the judge again. An hour that is in none is named, and fails
    nothing.
    """
    for window in windows or ():
        window_start(window)
    if bool(windows) == everything:
        raise UsageError("Name the hours, or give --all.")
    with open_database(load_settings(), prepare=False) as database, database.connect(autocommit=True) as connection:
        released = release_quarantined(connection, windows)
    others = sorted(set(windows or ()) - set(released))
    if others:
        say(f"Not in quarantine, nothing to retry: {', '.join(others)}. `babylon-rl score` judges hours that wait or have no scores.")
    elif not released:
        say("No group is in quarantine.")
    rows = [[window] for window in released]
    emit({"released": released, "notQuarantined": others}, [listed(["out of quarantine"], rows)] if rows else [], as_json)


@app.command("report")
def report(
    first: FromOption = None,
    end: ToOption = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A judge that has scored hours of the range. Unset: JUDGE_MODEL.")] = None,
    audit_groups: Annotated[
        int | None, typer.Option("--audit-groups", min=0, help="Groups about which JUDGE_AUDIT_MODEL is asked, where it is set; 0: none.")
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="Write the pictures there, as PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the judge's reliability and cost.

    Agreement with itself, with a second judge, and with the market, by default of the newest 14 days.
    """
    span = named_range(first, end)
    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        groups = AUDIT_GROUPS if audit_groups is None else audit_groups
        with database.connect(autocommit=True) as connection, progress_of_parts() as tell:
            span = span or default_range(connection)
            if span is None:
                raise UsageError("No hour has scores yet. Judge some with `babylon-rl score`.")
            measures, audited = report_with_audit(connection, settings, span, utc_now(), judge=judge, groups=groups, on_progress=tell)
    written = []
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for name, png in draw_plots(measures).items():
            path = plots / f"{PREFIX}{name}.png"
            path.write_bytes(png)
            written.append(path)
    document = report_document(measures) | {"plots": [str(path) for path in written]}
    versions = f" ({'; '.join(measures.versions)})" if measures.versions else ""
    table = listed(["", "95 % interval", ""], report_rows(measures), f"{measures.judge}{versions}, {measures.first} to {measures.end}")
    others = ", ".join(f"{name} {count}" for name, count in measures.judges.items() if name != measures.judge)
    emit(document, [table, *([f"Other hours of the range were scored by: {others}."] if others else [])], as_json)
    if audited is not None:
        say(audited.sentence)
    say(*(f"Wrote {path}" for path in written))


@app.command("calibrate")
def calibrate(
    hours: Annotated[int, typer.Option(min=2, max=168, help="Hours to play and judge; a language model is asked for each.")] = 24,
    judge: Annotated[str | None, typer.Option(help="Any litellm model name, or heuristic. Default: JUDGE_MODEL.")] = None,
    orders: Annotated[int | None, typer.Option(min=1, help="Orders in which each group is shown. Default: JUDGE_ORDERS.")] = None,
    markets: Annotated[int, typer.Option(min=2, help="Markets over which the agents' skill is measured.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the hours; the same seed gives the same hours.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Correlate the judge's scores with expected P&L. Of agents of known skill."""
    changed = {"judge_model": judge, "judge_orders": orders}
    settings = load_settings(**{name: value for name, value in changed.items() if value is not None})
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        # Its hours are played and judged in a database of their own: none of them may train, or count in a report. Only the result is kept.
        with scratch_database(settings.home, calibration_name(seed)) as scratch, progress_of_parts() as tell:
            with scratch.database.connect(autocommit=True) as connection:
                agreement = measure(connection, settings, utc_now(), hours=hours, skill_markets=markets, seed=seed, on_progress=tell)
            with database.connect(autocommit=True) as connection:
                write_judge_agreement(connection, agreement)
            # Unfinished hours keep their scratch database, so that the same command resumes.
            scratch.keep = agreement.not_judged > 0
    emit(agreement.document, _calibration_parts(agreement), as_json)
    if agreement.not_judged:
        say(f"{agreement.not_judged} of {hours} hours have no score; the same command goes on with them.")


def _calibration_parts(agreement: JudgeAgreement) -> list[Table | str]:
    rows = [
        [row["name"], _number(row["expected"], "+.0f"), _number(row["standardError"], ".1f"), _number(row["realized"], "+.0f"),
         _number(row["score"], ".3f"), _number(row["rank"], ".1f")]
        for row in agreement.rows
    ]  # fmt: skip
    shown = "" if agreement.orders == 1 else f", {agreement.orders} orders"
    setting = f"{agreement.judge} {agreement.judge_version}{shown}: {agreement.hours} hours of {agreement.agents} agents"
    compared = [
        ["scores with expected P&L", *_cells(agreement.expected), ""],
        ["scores with the P&L that came", *_cells(agreement.realized), ""],
        ["the P&L that came with expected P&L", *_cells(agreement.money), "what counting money alone reaches"],
        ["first less third", *_cells(agreement.over_money), "what the judge sees beyond the money"],
    ]
    title = f"Rank correlation within an hour (Spearman), mean over {agreement.hours} hours"
    equal = [f"{agreement.without_spread} hours got one score for all and count as 0."] if agreement.without_spread else []
    return [listed(CALIBRATION, rows, setting), "", listed(["", "mean", "95 %", ""], compared, title), *equal]


def _cells(ends: Sequence[float]) -> list[str]:
    mean, low, high = ends
    return [f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
