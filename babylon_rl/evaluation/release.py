"""A release is the gate's decision on record: nothing is deployed by it, and the version's status stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import StoredReport, read_stored_report, write_release


@dataclass(frozen=True)
class Release:
    """What was decided on a version: pass, fail, inconclusive or not_compared, and the numbers behind it."""

    version: str
    decision: str
    reason: str


def record_release(connection: psycopg.Connection[Any], batch_id: str, settings: Settings, now: datetime) -> Release:
    """Record the decision of a batch's report, and its figures beside the version in trained_models.

    benchmarkScore becomes the mean P&L of a market hour in dollars, accuracy the share of orders in the market's direction;
    evalMetrics keeps its other keys and gets ``benchmark``. A version that was not compared keeps the figures it has.

    Raises:
        UsageError: the batch has no benchmark report.
    """
    report = read_stored_report(connection, batch_id)
    if report is None:
        raise UsageError(f"{batch_id} has no benchmark report: materialize benchmark_report for it first.")
    row = next((row for row in report.rows if row["model"] == report.version), None)
    score, accuracy = (None, None) if row is None else (row["pnl"], row["accuracy"])
    write_release(connection, report, score, accuracy, {"benchmark": _metrics(report, row)}, now)
    return Release(report.version, report.decision, report.reason)


def _metrics(report: StoredReport, row: Mapping[str, Any] | None) -> dict[str, Any]:
    decided = {
        "decision": report.decision, "reason": report.reason, "reference": report.reference, "markets": report.markets,
        "minImprovement": report.min_improvement, "reportVersion": report.data_version,
    }  # fmt: skip
    return decided | {name: value for name, value in (row or {}).items() if name not in ("model", "role", "markets")}
