"""Benchmark report: one HTML file that works offline, and its numbers as CSV.

The CSV holds no formula of a spreadsheet.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.html_report.page import page
from babylon_rl.evaluation.report import ACTIONS, RUNS
from babylon_rl.evaluation.results import Result
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.reporting.numbers import Column

FORMULA = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")  # spreadsheets read the full-width signs too


def write_report(results: Sequence[Result], directory: Path, scenarios: Mapping[str, Scenario] | None = None) -> list[Path]:
    """Write index.html, runs.csv and actions.csv, each atomically.

    The same results give the same bytes.

    Args:
        results: sound ones, of any agents and markets; runs that ended early are listed, and compared with nothing.
        scenarios: markets by ``Result.snapshot``, to show beside each decision what was published then.

    Returns:
        The files, the page first.

    Raises:
        MarketError: there is no result, or one twice.
    """
    if not results:
        raise MarketError("There is no result to report. `babylon-rl benchmark run` makes them.")
    # A result that counts twice would make intervals too narrow.
    if len({result.id for result in results}) < len(results):
        twice = sorted({result.id for result in results if sum(result.id == other.id for other in results) > 1})
        raise MarketError(f"Results are there twice: {', '.join(twice[:5])}. Give each once.")
    files: dict[str, Callable[[], Iterable[str]]] = {
        "index.html": lambda: [page(results, scenarios or {})],
        "runs.csv": lambda: _lines(RUNS, results),
        "actions.csv": lambda: _lines(ACTIONS, ((result, action) for result in results for action in result.actions)),
    }
    directory.mkdir(parents=True, exist_ok=True)
    return [_written(directory / name, parts()) for name, parts in files.items()]


def _written(path: Path, parts: Iterable[str]) -> Path:
    write_atomically(path, (part.encode("utf-8", "replace") for part in parts))
    return path


def safe(value: object) -> object:
    """Cell that no spreadsheet takes for a formula: such a text gets an apostrophe first."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    # Lone surrogates cannot be written as UTF-8.
    cleaned = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    # Blanks before a formula do not keep a spreadsheet from reading it.
    return f"'{cleaned}" if cleaned.lstrip(" ").startswith(FORMULA) else cleaned


def _lines(columns: Sequence[Column], rows: Iterable[Any]) -> Iterator[str]:
    # Line by line: actions.csv may be larger than memory.
    for cells in chain([[column.title for column in columns]], ([column.cell(row) for column in columns] for row in rows)):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([safe(cell) for cell in cells])
        yield line.getvalue()
