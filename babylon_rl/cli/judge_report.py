"""Command ``judge report``: reliability and cost of the judge on one screen, plots on request."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.options import FromOption, ToOption
from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, say, table
from babylon_rl.errors import UsageError
from babylon_rl.settings import load_settings
from babylon_rl.windows import utc_now, window_range

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.judge.reliability.audit import AuditResult
    from babylon_rl.judge.reliability.report import ReliabilityReport
    from babylon_rl.settings import Settings
    from babylon_rl.store.database import Database

PREFIX = "judge-report-"


def register(judge: typer.Typer) -> None:
    """Add the command to the group ``judge``."""
    judge.command("report")(report)


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
    """How far the judge agrees with itself, with a second judge and with the market, and what it costs (default: the newest week)."""
    from babylon_rl.store.database import open_database

    if (first is None) != (end is None):
        raise UsageError("--from and --to belong together.")
    if first is not None and end is not None:
        next(window_range(first, end), None)
    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        measures, audited = measured(database, settings, (first, end) if first and end else None, judge, audit_groups)
    if measures is None:
        raise UsageError("No hour has scores yet. Judge some with `babylon-rl score`.")
    from babylon_rl.judge.reliability.report import report_document

    written = [] if plots is None else _write(measures, plots)
    document = report_document(measures) | {"plots": [str(path) for path in written]}
    emit(document, lambda out: _render(out, measures), as_json)
    if audited is not None:
        say(audited.sentence)
    for path in written:
        say(f"Wrote {path}")


def measured(
    database: "Database", settings: "Settings", wanted: tuple[str, str] | None, judge: str | None, audit_groups: int | None
) -> "tuple[ReliabilityReport | None, AuditResult | None]":
    """Reliability report of some hours, after the second judge was asked.

    ``wanted`` None means the newest week; the report is None if nothing is judged.
    """
    from babylon_rl.judge.reliability.audit import AUDIT_GROUPS, report_with_audit
    from babylon_rl.judge.reliability.report import default_range
    from babylon_rl.store.migrate import require_migrated

    require_migrated(database)
    groups = AUDIT_GROUPS if audit_groups is None else audit_groups
    with database.connect(autocommit=True) as connection, progress_of_parts() as tell:
        # Without judged hours there is no default range.
        span = wanted or default_range(connection)
        if span is None:
            return None, None
        return report_with_audit(connection, settings, span, utc_now(), judge=judge, groups=groups, on_progress=tell)


def _write(found: "ReliabilityReport", directory: Path) -> list[Path]:
    from babylon_rl.judge.reliability.plots import draw_plots

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, png in draw_plots(found).items():
        path = directory / f"{PREFIX}{name}.png"
        path.write_bytes(png)
        written.append(path)
    return written


def _render(out: "Console", found: "ReliabilityReport") -> None:
    from babylon_rl.judge.reliability.report import report_rows

    versions = f" ({'; '.join(found.versions)})" if found.versions else ""
    others = ", ".join(f"{judge} {count}" for judge, count in found.judges.items() if judge != found.judge)
    rows: list[list[Any]] = [list(line) for line in report_rows(found)]
    out.print(table(f"{found.judge}{versions}, {found.first} to {found.end}", ["", "95 % interval", ""], rows))
    if others:
        out.print(f"Other hours of the range were scored by: {others}.", markup=False)
