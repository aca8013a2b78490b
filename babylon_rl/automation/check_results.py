"""Rules for hours, and their check results: every bad hour named, with numbers and advice.

Dagster plans a result for every hour of a run but accepts only one, so a range run logs the results of bad hours beside it. A logged
result is as expensive as a materialization.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import dagster as dg

from babylon_rl.assets.metadata import described
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.windows import next_window, window_stretches

# Metadata of a range's check result: stretches of hours that it looked at, as (first, last).
MEASURED = "babylon_rl/measured_hours"
NOTHING_FOUND = "Nothing found."
HOURS_NAMED = 3
HOURS_LISTED = 50
NOT_MEASURED = "Not measured: no hour of this run holds what this check looks at."


@dataclass(frozen=True)
class Finding:
    """A fault of one hour in words, and the first rows, agents or markets concerned."""

    says: str
    ids: tuple[str, ...] = ()


class HourFacts(Protocol):
    """Facts of one hour that a rule looks at."""

    @property
    def window(self) -> str:
        """The hour."""
        ...


Hour = TypeVar("Hour", bound=HourFacts)


@dataclass(frozen=True)
class Rule(Generic[Hour]):
    """One check of an hourly asset: its description, its test and its advice."""

    name: str
    description: str
    look: Callable[[Hour, Settings], Finding | None]
    advice: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class HourlyChecks(Generic[Hour]):
    """Rules of one asset that share a query.

    ``name`` is the name of their op in the graph.

    Attributes:
        read: the facts of some hours; hours without facts find nothing.
        totals: metadata over all hours of a run, by the rule's name.
    """

    name: str
    asset: str
    rules: tuple[Rule[Hour], ...]
    read: Callable[[Connection, Sequence[str], Settings], Sequence[Hour]]
    totals: Callable[[Sequence[Hour]], Mapping[str, Mapping[str, Any]]]

    def definition(self) -> dg.AssetChecksDefinition:
        """The Dagster definition of these checks."""

        @dg.multi_asset_check(
            name=self.name,
            specs=[
                dg.AssetCheckSpec(
                    rule.name,
                    asset=self.asset,
                    description=described(rule.description, rule.advice.format(hour="HOUR", end="END")),
                    partitions_def=hours,
                )
                for rule in self.rules
            ],
            can_subset=True,
        )
        def check(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
            with babylon.connection() as connection:
                facts = self.read(connection, context.partition_keys, babylon.settings)
            totals = self.totals(facts)
            selected = {key.name for key in context.op_execution_context.selected_asset_check_keys}
            for rule in self.rules:
                if rule.name in selected:
                    # Of hours with facts only; where there are none at all, the check does not pass.
                    findings = {hour.window: rule.look(hour, babylon.settings) for hour in facts}
                    yield _check_result(context, rule, findings, totals.get(rule.name, {}))

        return check


def _check_result(
    context: dg.AssetCheckExecutionContext, rule: Rule[Any], measured: Mapping[str, Finding | None], totals: Mapping[str, Any]
) -> dg.AssetCheckResult:
    """Result of a rule over the run's hours: passed, or findings with advice.

    Hours of which none was ``measured`` are a warning, not a pass.

    ``{hour}`` and ``{end}`` in the advice are the newest bad hour and the one after it.
    """
    asset = next(spec.asset_key for spec in context.check_specs if spec.name == rule.name)
    count = len(context.partition_keys)
    findings = {window: finding for window, finding in measured.items() if finding is not None}
    if not context.has_partition_key:  # a range, be it of one hour
        totals = {**totals, MEASURED: [list(stretch) for stretch in window_stretches(measured, count)]}
        for window, finding in sorted(findings.items()):
            context.op_execution_context.log_event(_hour_evaluation(asset, rule, window, finding))  # type: ignore[arg-type] # taken, as yet undeclared
    return dg.AssetCheckResult(
        passed=bool(measured) and not findings,
        asset_key=asset,
        check_name=rule.name,
        severity=rule.severity if measured else dg.AssetCheckSeverity.WARN,
        description=_description(findings, count, rule.advice) if measured else NOT_MEASURED,
        metadata={"hours": count, **totals, **_metadata(findings)},
    )


def _hour_evaluation(asset: dg.AssetKey, rule: Rule[Any], window: str, finding: Finding) -> dg.AssetCheckEvaluation:
    findings = {window: finding}
    return dg.AssetCheckEvaluation(
        asset,
        rule.name,
        passed=False,
        metadata={name: dg.MetadataValue.json(value) for name, value in _metadata(findings).items()},
        severity=rule.severity,
        description=_description(findings, 1, rule.advice),
        partition=window,
    )


def _metadata(findings: Mapping[str, Finding]) -> dict[str, Any]:
    listed = dict(sorted(findings.items(), reverse=True)[:HOURS_LISTED])
    metadata: dict[str, Any] = {}
    if listed:
        metadata["found"] = {window: finding.says for window, finding in listed.items()}
    ids = {window: list(finding.ids) for window, finding in listed.items() if finding.ids}
    return metadata | ({"ids": ids} if ids else {})


def _description(findings: Mapping[str, Finding], hours: int, advice: str) -> str:
    if not findings:
        return NOTHING_FOUND if hours == 1 else f"Nothing found in {hours} hours."
    # The newest HOURS_NAMED hours are named, the rest counted; the advice is about the newest.
    newest = sorted(findings.items(), reverse=True)
    named = "; ".join(f"{window}: {finding.says}" for window, finding in newest[:HOURS_NAMED])
    more = f"; and {len(newest) - HOURS_NAMED} more" if len(newest) > HOURS_NAMED else ""
    counted = "" if hours == 1 else f"{len(newest)} of {hours} hours. "
    window = newest[0][0]
    return f"{counted}{named}{more}. {advice.format(hour=window, end=next_window(window))}"
