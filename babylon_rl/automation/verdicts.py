"""Check results for hours: every bad hour named, with numbers and advice.

Dagster plans a result for every hour of a run but accepts only one, so a range run logs the results of the hours beside it. Each is an
event as expensive as a materialization: a range run writes them only for the newest hour and for bad hours, and the rest stays skipped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import dagster as dg

from babylon_rl.assets.hours import plotted
from babylon_rl.assets.partitions import hours
from babylon_rl.settings import Settings
from babylon_rl.windows import window_end, window_of

HOURS_NAMED = 3
HOURS_LISTED = 50


@dataclass(frozen=True)
class Finding:
    """A fault of one hour: a sentence without the hour, and the first rows concerned.

    ``ids`` may also be agents or markets.
    """

    says: str
    ids: tuple[str, ...] = ()


class OfAnHour(Protocol):
    """Facts of one hour that a rule looks at."""

    @property
    def window(self) -> str:
        """The hour."""
        ...


Hour = TypeVar("Hour", bound=OfAnHour)


@dataclass(frozen=True)
class Rule(Generic[Hour]):
    """One check of an hourly asset: its description, its test and its advice."""

    name: str
    description: str
    look: Callable[[Hour, Settings], Finding | None]
    advice: str


def specs(asset: str, rules: Sequence[Rule[Any]]) -> list[dg.AssetCheckSpec]:
    """The Dagster specifications of ``rules`` for ``asset``."""
    return [dg.AssetCheckSpec(rule.name, asset=asset, description=rule.description, partitions_def=hours) for rule in rules]


def verdicts(
    context: dg.AssetCheckExecutionContext,
    rules: Sequence[Rule[Hour]],
    found: Sequence[Hour],
    settings: Settings,
    shown: Mapping[str, Mapping[str, Any]],
) -> Iterator[dg.AssetCheckResult]:
    """A result for each requested rule, over the hours ``found``.

    ``shown`` is metadata by the rule's name.
    """
    wanted = {key.name for key in context.op_execution_context.selected_asset_check_keys}
    for rule in rules:
        if rule.name in wanted:
            findings = {hour.window: rule.look(hour, settings) for hour in found}
            bad = {window: finding for window, finding in findings.items() if finding is not None}
            yield verdict(context, rule.name, bad, rule.advice, **shown.get(rule.name, {}))


def verdict(
    context: dg.AssetCheckExecutionContext,
    check: str,
    findings: Mapping[str, Finding],
    advice: str,
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    **shown: Any,
) -> dg.AssetCheckResult:
    """The result of ``check`` over the run's hours, with ``advice`` if it fails.

    ``findings`` are faults by window; the check passes without any.

    ``{hour}`` and ``{end}`` in the advice are the newest bad hour and the one after it; ``shown`` becomes metadata beside the findings.
    """
    asset = next(spec.asset_key for spec in context.check_specs if spec.name == check)
    windows = list(context.partition_keys)
    # A range run logs one evaluation per bad hour, and one for the newest.
    if len(windows) > 1:
        for window in sorted(plotted(windows) | findings.keys()):
            of_hour = _of_hour(asset, check, window, findings.get(window), advice, severity)
            context.op_execution_context.log_event(of_hour)  # type: ignore[arg-type] # taken, as yet undeclared
    metadata = {"hours": len(windows), **shown, **_found(findings)}
    return dg.AssetCheckResult(
        passed=not findings,
        asset_key=asset,
        check_name=check,
        severity=severity,
        description=_said(findings, len(windows), advice),
        metadata=metadata,
    )


def _of_hour(
    asset: dg.AssetKey, check: str, window: str, finding: Finding | None, advice: str, severity: dg.AssetCheckSeverity
) -> dg.AssetCheckEvaluation:
    findings = {} if finding is None else {window: finding}
    return dg.AssetCheckEvaluation(
        asset,
        check,
        finding is None,
        metadata={name: dg.MetadataValue.json(value) for name, value in _found(findings).items()},
        severity=severity,
        description=_said(findings, 1, advice),
        partition=window,
    )


def _found(findings: Mapping[str, Finding]) -> dict[str, Any]:
    listed = dict(sorted(findings.items(), reverse=True)[:HOURS_LISTED])
    metadata: dict[str, Any] = {}
    if listed:
        metadata["found"] = {window: finding.says for window, finding in listed.items()}
    ids = {window: list(finding.ids) for window, finding in listed.items() if finding.ids}
    return metadata | ({"ids": ids} if ids else {})


def _said(findings: Mapping[str, Finding], hours: int, advice: str) -> str:
    if not findings:
        return "Nothing found." if hours == 1 else f"Nothing found in {hours} hours."
    # The newest HOURS_NAMED hours are named, the rest counted; the advice is about the newest.
    newest = sorted(findings.items(), reverse=True)
    named = "; ".join(f"{window}: {finding.says}" for window, finding in newest[:HOURS_NAMED])
    more = f"; and {len(newest) - HOURS_NAMED} more" if len(newest) > HOURS_NAMED else ""
    counted = "" if hours == 1 else f"{len(newest)} of {hours} hours. "
    window = newest[0][0]
    return f"{counted}{named}{more}. {advice.format(hour=window, end=window_of(window_end(window)))}"
