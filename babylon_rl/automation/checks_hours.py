"""Checks of every hour's rows and group: one query per asset, all of them warnings.

Each fault is one sentence. A warning stops nothing: the rejection rules already leave out rows that do not count, and the rest is trained
whatever a check says.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.verdicts import Finding, Rule, specs, verdict, verdicts
from babylon_rl.judge.groups import NO_SPREAD
from babylon_rl.settings import Settings
from babylon_rl.store.scores import group_spreads
from babylon_rl.store.windows import HourCounts, hour_counts

MOST_MALFORMED, MOST_REJECTED = 0.2, 0.5
MALFORMED = ("malformed_json", "malformed_shape")


def _rejected(hour: HourCounts, settings: Settings) -> Finding | None:
    count = sum(hour.rejected.values())
    if count <= MOST_REJECTED * hour.rows:
        return None
    reasons = ", ".join(f"{number} {reason}" for reason, number in hour.rejected.items())
    return Finding(f"{_share(count, hour.rows)} rows do not count ({reasons})")


def _malformed(hour: HourCounts, settings: Settings) -> Finding | None:
    count = sum(hour.rejected.get(reason, 0) for reason in MALFORMED)
    return Finding(f"{_share(count, hour.rows)} rows are malformed") if count > MOST_MALFORMED * hour.rows else None


def _silent(hour: HourCounts, settings: Settings) -> Finding | None:
    if not hour.ready or hour.trainable_sequences:
        return None
    sources = ", ".join(f"{number} {source}" for source, number in hour.message_sources.items() if number)
    return Finding(f"ready, but none of its messages can train ({sources})")


def _short(hour: HourCounts, settings: Settings) -> Finding | None:
    quality = hour.quality
    if quality.short_prompts <= (1 - settings.data_quality_threshold) * quality.prompts:
        return None
    return Finding(
        f"{_share(quality.short_prompts, quality.prompts)} rows have a short prompt (system up to 50 or user up to 100 characters)"
    )


def _duplicates(hour: HourCounts, settings: Settings) -> Finding | None:
    quality = hour.quality
    if not quality.duplicate_rows:
        return None
    return Finding(f"{_share(quality.duplicate_rows, hour.rows)} rows repeat the steps of another row of their agent", quality.duplicates)


def _skew(hour: HourCounts, settings: Settings) -> Finding | None:
    quality = hour.quality
    if not quality.skewed_rows:
        return None
    return Finding(f"{_share(quality.skewed_rows, hour.rows)} rows have times that contradict each other", quality.clock_skew)


def _jumps(hour: HourCounts, settings: Settings) -> Finding | None:
    quality = hour.quality
    if not quality.jumping_agents:
        return None
    agents = "agent's P&L jumps" if quality.jumping_agents == 1 else "agents' P&L jumps"
    return Finding(f"{quality.jumping_agents} {agents} by more than could be won or lost", quality.pnl_jumps)


def _lengths(hour: HourCounts, settings: Settings) -> Finding | None:
    count = hour.quality.other_lengths
    return Finding(f"{_share(count, hour.rows)} rows say windowHours other than 1") if count else None


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})" if total else str(count)


RULES: tuple[Rule[HourCounts], ...] = (
    Rule(
        "few_rows_rejected",
        "At most half of the rows are left out, for whatever reason.",
        _rejected,
        "`babylon-rl rejected --from {hour} --to {end}` lists each row with its reason and detail.",
    ),
    Rule(
        "few_rows_malformed",
        "At most a fifth of the rows are malformed.",
        _malformed,
        "`babylon-rl rejected --from {hour} --to {end}` says where in stepsJson; mend what writes it.",
    ),
    Rule(
        "messages_recorded",
        "Ready hours hold messages that can train, not only synthetic ones.",
        _silent,
        "Record prompts (docs/howto/recording.md), or set TRAIN_SYNTHETIC=true.",
    ),
    Rule(
        "prompts_long_enough",
        "The share of rows with long enough prompts is at least DATA_QUALITY_THRESHOLD.",
        _short,
        "Readiness counts these rows as poor: record prompts whole, as they were sent.",
    ),
    Rule(
        "rows_unique",
        "No agent's trajectory is recorded twice in the hour.",
        _duplicates,
        "Each copy counts in its agent's episode: delete the copies from trajectories, and record each run once.",
    ),
    Rule(
        "clocks_agree",
        "Start, end, window and steps of every row name the same time.",
        _skew,
        "Compare startTime, endTime, windowId and the steps' timestamp of these rows; all of them are UTC.",
    ),
    Rule(
        "pnl_plausible",
        "No agent's P&L jumps by more than it could have had at stake.",
        _jumps,
        "Scores rest on it: compare agentPnL in stepsJson and finalPnL of these agents; `babylon-rl episodes {hour}` shows start and end.",
    ),
    Rule(
        "one_hour_each",
        "Every row is about one hour (windowHours is 1).",
        _lengths,
        "Each was read as part of its own hour only; have it recorded by the hour.",
    ),
)


@dg.multi_asset_check(
    specs=specs("window_groups", RULES),
    can_subset=True,
)
def rows_of_hours(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    """Unusual rows in some hours."""
    with babylon.connection() as connection:
        counts = hour_counts(connection, context.partition_keys)
    yield from verdicts(context, RULES, counts, babylon.settings, _totals(counts))


def _totals(counts: list[HourCounts]) -> dict[str, dict[str, Any]]:
    """Metadata over all hours of the run, shown whether the check passes or not."""
    # Sums over all hours, so that a range shows one number per check.
    rejected, sources = Counter[str](), Counter[str]()
    for hour in counts:
        rejected.update(hour.rejected)
        sources.update(hour.message_sources)
    rows = sum(hour.rows for hour in counts)
    share = {"rows": rows, "rejected": dict(rejected), "rejected_share": round(rejected.total() / rows, 4) if rows else 0.0}
    prompts, short = sum(hour.quality.prompts for hour in counts), sum(hour.quality.short_prompts for hour in counts)
    return {
        "few_rows_rejected": share,
        "few_rows_malformed": {"rows": rows, "malformed": sum(rejected[reason] for reason in MALFORMED)},
        "messages_recorded": {"message_sources": dict(sources), "ready": sum(hour.ready for hour in counts)},
        "prompts_long_enough": {"rows_with_prompts": prompts, "short_prompts": short},
    }


@dg.asset_check(asset="scored_groups", partitions_def=hours, description="The judge tells episodes apart: groups have a spread of scores.")
def scores_differ(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    with babylon.connection() as connection:
        spreads = group_spreads(connection, context.partition_keys)
    flat = {
        window: Finding(f"all scores are equal (standard deviation {spread:.1g})")
        for window, spread in spreads.items()
        if spread < NO_SPREAD
    }
    return verdict(context, "scores_differ", flat, "Such a group carries no signal and will not be trained.", groups=len(spreads))


checks_of_hours = [rows_of_hours, scores_differ]
