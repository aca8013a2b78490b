"""Rules for hours and the verdict of each: every bad hour named, with numbers and advice.

A verdict is about the newest HOURS_LOOKED_AT hours with data, those that changed within CHANGED_WITHIN, and the hours of its run: a later
good hour does not hide an earlier bad one, and a run of checks alone needs no hour.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

import dagster as dg

from babylon_rl.assets.partitions import described, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.conditions import after_hours
from babylon_rl.serving.dagster_client import PARTITION_TAG, RANGE_END, RANGE_START
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import recent_hours
from babylon_rl.windows import next_window, window_range

HOURS_LOOKED_AT = 24
CHANGED_WITHIN = timedelta(days=1)
HOURS_NAMED = 3


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


Hour = TypeVar("Hour", bound=HourFacts)
Need = tuple[str, Callable[[Hour], bool]]
Look = Callable[[Hour, Settings], Finding | None]
_ANY_HOUR: Need[Any] = ("data", lambda hour: True)


@dataclass(frozen=True)
class Rule(Generic[Hour]):
    """One check of an hourly asset: its description, its test and its advice.

    Hours without what it ``needs`` (a name, and its test) are not measured. ``{hour}`` and ``{end}`` in the advice are the newest bad hour
    and the one after it.
    """

    name: str
    description: str
    look: Look[Hour]
    advice: str
    severity: dg.AssetCheckSeverity
    needs: Need[Hour]

    def result(self, asset: str, hours: Sequence[Hour], settings: Settings) -> dg.AssetCheckResult:
        """The verdict on ``hours``: passed, or every bad hour; a warning where nothing was measured."""
        measured = sorted(filter(self.needs[1], hours), key=lambda hour: hour.window, reverse=True)
        found = {hour.window: finding for hour in measured if (finding := self.look(hour, settings)) is not None}
        metadata: dict[str, Any] = {}
        if measured:
            metadata = {"looked_at": f"{_hours(measured)}, {measured[-1].window} to {measured[0].window}"}
        # Only where there are some: Dagster would plot a line of zeros on every check's page.
        if found:
            metadata["bad_hours"] = len(found)
            rows = [{"hour": window, "what": finding.says, "first": ", ".join(finding.ids)} for window, finding in found.items()]
            metadata["hours"] = table(rows)
        return dg.AssetCheckResult(
            passed=bool(measured) and not found,
            asset_key=asset,
            check_name=self.name,
            severity=self.severity if measured else dg.AssetCheckSeverity.WARN,
            description=self._words(measured, found),
            metadata=metadata,
        )

    def _words(self, measured: Sequence[Hour], found: Mapping[str, Finding]) -> str:
        if not measured:
            return f"Nothing measured: no hour that was looked at has {self.needs[0]}."
        if not found:
            return f"Nothing found in {_hours(measured)}."
        newest = next(iter(found))
        named = "; ".join(f"{window}, {finding.says}" for window, finding in list(found.items())[:HOURS_NAMED])
        more = f"; and {len(found) - HOURS_NAMED} more" if len(found) > HOURS_NAMED else ""
        return f"{len(found)} of {_hours(measured)}: {named}{more}. {self.advice.format(hour=newest, end=next_window(newest))}"


@dataclass(frozen=True)
class HourlyChecks(Generic[Hour]):
    """Rules of one asset that share a query: ``read`` returns the facts of some hours, without those that have none."""

    asset: str
    read: Callable[[Connection, Sequence[str], Settings], Sequence[Hour]]
    rules: list[Rule[Hour]] = field(default_factory=list)

    def rule(
        self, description: str, advice: str, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN, needs: Need[Hour] = _ANY_HOUR
    ) -> Callable[[Look[Hour]], Look[Hour]]:
        """Decorator of a rule's test; the check has the name of the function."""

        def add(look: Look[Hour]) -> Look[Hour]:
            self.rules.append(Rule(look.__name__, description, look, advice, severity, needs))
            return look

        return add

    def definition(self) -> dg.AssetChecksDefinition:
        @dg.multi_asset_check(
            name=f"checks_of_{self.asset}",
            specs=[
                dg.AssetCheckSpec(
                    rule.name,
                    asset=self.asset,
                    description=described(rule.description, rule.advice.format(hour="HOUR", end="END")),
                    automation_condition=after_hours(),
                )
                for rule in self.rules
            ],
            can_subset=True,
        )
        def check(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
            with babylon.connection() as connection:
                recent = recent_hours(connection, self.asset, HOURS_LOOKED_AT, babylon.now() - CHANGED_WITHIN)
                windows, tags = set(recent), context.run.tags
                # A run of checks alone was started for no hour.
                if (first := tags.get(PARTITION_TAG, tags.get(RANGE_START))) is not None:
                    windows.update(window_range(first, next_window(tags.get(RANGE_END, first))))
                hours = self.read(connection, sorted(windows), babylon.settings)
            selected = {key.name for key in context.op_execution_context.selected_asset_check_keys}
            yield from (rule.result(self.asset, hours, babylon.settings) for rule in self.rules if rule.name in selected)

        return check


def _hours(hours: Sequence[HourFacts]) -> str:
    return "1 hour" if len(hours) == 1 else f"{len(hours)} hours"
