"""Benchmark report: one HTML file that works offline, and its numbers as CSV."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.html_report.csv_files import actions_csv, runs_csv
from babylon_rl.evaluation.html_report.page import page
from babylon_rl.evaluation.results import Result
from babylon_rl.market.simulation.scenario import Scenario

__all__ = ["write_report"]


def write_report(results: Sequence[Result], directory: Path, scenarios: Mapping[str, Scenario] | None = None) -> list[Path]:
    """Write index.html, runs.csv and actions.csv, each atomically.

    The same results give the same bytes.

    Args:
        results: sound ones, of any agents and markets; runs that ended early are told, and compared with nothing.
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
        "runs.csv": lambda: runs_csv(results),
        "actions.csv": lambda: actions_csv(results),
    }
    directory.mkdir(parents=True, exist_ok=True)
    return [_written(directory / name, parts()) for name, parts in files.items()]


def _written(path: Path, parts: Iterable[str]) -> Path:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="", errors="replace") as file:
        file.writelines(parts)
    os.replace(part, path)
    return path
