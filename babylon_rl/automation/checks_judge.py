"""Checks of every scored hour: unusual judgements. One query for all, all of them warnings.

A warning stops nothing: groups without scores do not train anyway, and a person decides whether unusual scores are wrong.
"""

import math
from collections.abc import Iterator
from datetime import timedelta
from itertools import combinations

import dagster as dg

from babylon_rl.assets.judge_report import REPORT_DAYS
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.verdicts import Finding, Rule, specs, verdicts
from babylon_rl.judge.reliability_ranks import spearman
from babylon_rl.judge.telling import told_verdicts
from babylon_rl.settings import Settings
from babylon_rl.store.judge_report import HourVerdicts, judges_of, without_scores
from babylon_rl.windows import HOUR, window_of

MOST_TIED = 0.5
MOST_SHORTENED = 0.05
SAME_SCORE = 1e-9
MOVING_PERCENT = 2.0
REASON_CHARACTERS = 200
MOST_QUARANTINED = 0.1
MOST_LENGTH_POINTS = 0.1
LENGTH_ADVICE = (
    "Agents would learn to write more, or less, instead of to trade: try another model (`babylon-rl judge calibrate` compares them), "
    "or a lower JUDGE_REQUEST_TOKENS, which shows long episodes shorter."
)
QUARANTINE_ADVICE = (
    "`babylon-rl judge quarantine` shows why: a model that cannot answer in JSON is the wrong one, what is refused as too long wants a "
    "lower JUDGE_REQUEST_TOKENS; `babylon-rl judge retry --all` asks again."
)


def _without_scores(hour: HourVerdicts, settings: Settings) -> Finding | None:
    if hour.quarantined is not None:
        return Finding(f"set aside without scores, {hour.quarantined[:REASON_CHARACTERS]}")
    return Finding(f"waits without scores, {hour.pending[:REASON_CHARACTERS]}") if hour.pending is not None else None


def _tied(hour: HourVerdicts, settings: Settings) -> Finding | None:
    pairs = list(combinations(hour.scores, 2))
    tied = sum(abs(first - second) < SAME_SCORE for first, second in pairs)
    if not MOST_TIED * len(pairs) < tied < len(pairs):  # that all are equal is scores_differ's to say
        return None
    return Finding(f"{tied} of {len(pairs)} pairs of its episodes have the same score")


def _disagreeing(hour: HourVerdicts, settings: Settings) -> Finding | None:
    if hour.disagreement <= settings.judge_disagreement:
        return None
    return Finding(
        f"{hour.orders} orders differ by {hour.disagreement:.2f} on average (JUDGE_DISAGREEMENT is {settings.judge_disagreement:g})"
    )


def _against_pnl(hour: HourVerdicts, settings: Settings) -> Finding | None:
    known = [(score, pnl) for score, pnl in zip(hour.scores, hour.pnls_usd, strict=True) if pnl is not None and math.isfinite(pnl)]
    correlation = spearman([score for score, _ in known], [pnl for _, pnl in known])
    if correlation is None or correlation >= 0:
        return None
    return Finding(f"scores fall as P&L rises (rank correlation {correlation:+.2f} over {len(known)} episodes)")


def _holding(hour: HourVerdicts, settings: Settings) -> Finding | None:
    moved = max((abs(move) for move in (hour.mean_change, hour.volatility) if move is not None and math.isfinite(move)), default=0.0)
    if moved < MOVING_PERCENT:
        return None
    entries = list(zip(hour.agents, hour.scores, hour.trades, hour.pnls_usd, strict=True))
    held = [(agent, score) for agent, score, trades, _ in entries if trades == 0]
    won = [score for _, score, trades, pnl in entries if trades and pnl is not None and pnl > 0]
    # Pairs in which an agent that only held is ranked above one that traded and gained.
    above = sum(score > other for _, score in held for other in won)
    if above <= len(held) * len(won) / 2:
        return None
    agents = tuple(agent for agent, score in held if any(score > other for other in won))
    sentence = (
        f"the market moved by {moved:.1f} %, and in {above} of {len(held) * len(won)} pairs an agent that only held is ranked above one"
    )
    return Finding(f"{sentence} that traded and gained", agents)


def _shortened(hour: HourVerdicts, settings: Settings) -> Finding | None:
    if hour.shortened <= MOST_SHORTENED * hour.steps and not hour.decisions_shortened:
        return None
    share = f"{hour.shortened} of {hour.steps} steps ({hour.shortened / max(1, hour.steps):.0%})"
    return Finding(f"{share} were not shown to the judge in full; trades among them: {hour.decisions_shortened}")


def _leaking(hour: HourVerdicts, settings: Settings) -> Finding | None:
    telling = tuple(agent for agent, tells in zip(hour.agents, hour.tells, strict=True) if tells)
    parts = [f"{hour.leaked} of its sequences hold what only became known after it"] if hour.leaked else []
    parts += [f"{len(telling)} explanations repeat what is hidden from the agents"] if telling else []
    return Finding(", and ".join(parts), telling) if parts else None


def _flagged(hour: HourVerdicts, settings: Settings) -> Finding | None:
    agents = tuple(agent for agent, flags in zip(hour.agents, hour.flags, strict=True) if flags)
    if not agents and not hour.context_flags:
        return None
    parts = [f"{len(agents)} of {len(hour.agents)} episodes hold text that may speak to the judge ({sum(hour.flags)} suspicions)"]
    parts += [f"{hour.context_flags} suspicions in news, questions and names"] if hour.context_flags else []
    gained = [(gain, agent) for gain, agent in zip(hour.gains, hour.agents, strict=False) if gain is not None]
    if gained:
        gain, agent = max(gained, key=lambda one: abs(one[0]))
        counts = "the scores with it masked count" if hour.masked else "no more than two orders differ by"
        parts.append(f"it moved {agent} by {gain:+.2f} (noise {hour.noise or 0.0:.2f}): {counts}")
    return Finding("; ".join(parts), agents)


RULES: tuple[Rule[HourVerdicts], ...] = (
    Rule(
        "groups_have_scores",
        "No group is in quarantine or waits for its judge.",
        _without_scores,
        "`babylon-rl judge quarantine {hour}` shows the tries, `judge retry` asks anew; what waits is asked for again every 30 minutes.",
    ),
    Rule(
        "few_ties",
        "At most half of the pairs of a group's episodes have the same score.",
        _tied,
        "Equal scores teach nothing: read the explanations with `babylon-rl scores {hour}`; another model may tell more apart.",
    ),
    Rule(
        "orders_agree",
        "The orders in which a group was shown differ by JUDGE_DISAGREEMENT at most.",
        _disagreeing,
        "More orders (JUDGE_ORDERS, JUDGE_MAX_ORDERS) or a better model; `babylon-rl judge report` says whether the place is to blame.",
    ),
    Rule(
        "scores_follow_pnl",
        "Scores do not fall as the hour's P&L rises.",
        _against_pnl,
        "A judge may know better than an hour's luck, but not hour after hour: `babylon-rl scores {hour}` has its reasons.",
    ),
    Rule(
        "holding_not_favoured",
        f"Where the market moved by {MOVING_PERCENT:g} % or more, agents that only held are not ranked above those that traded and gained.",
        _holding,
        "To hold and sound wise is a known way to fool a judge: `babylon-rl scores {hour}` has its reasons.",
    ),
    Rule(
        "steps_shown_in_full",
        f"At most {MOST_SHORTENED:.0%} of an hour's steps, and no trade, were shortened to fit the judge's requests.",
        _shortened,
        "Take a judge with a larger context, or raise JUDGE_REQUEST_TOKENS where it is set; `babylon-rl score --window {hour} --force` "
        "asks again.",
    ),
    Rule(
        "nothing_leaks",
        "No sequence of a scored hour holds what came after it, and no explanation repeats what is hidden from the agents.",
        _leaking,
        "Leaking sequences never train (no_leaks of hindsight names them). Explanations stand in aiJudgeReasoning: show them to no agent.",
    ),
    Rule(
        "nobody_speaks_to_the_judge",
        "No episode, news, question or name holds text that may be meant for the judge.",
        _flagged,
        "The page of scored_groups lists each suspicion of {hour} and what it gained. A gain beyond what orders differ by does not count.",
    ),
)


@dg.multi_asset_check(
    specs=specs("scored_groups", RULES),
    can_subset=True,
)
def judged_hours(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    """Unusual judgements in some hours."""
    with babylon.connection() as connection:
        found = told_verdicts(connection, context.partition_keys, babylon.settings)
    scored = {"scored": sum(hour.judge is not None for hour in found)}
    yield from verdicts(context, RULES, found, babylon.settings, {rule.name: scored for rule in RULES})


@dg.asset_check(
    asset="judge_report",
    description=f"Of the hours that JUDGE_MODEL scored or set aside in the last {REPORT_DAYS} days, at most "
    f"{MOST_QUARANTINED:.0%} are in quarantine.",
)
def few_in_quarantine(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    now, judge = babylon.now(), babylon.settings.judge_model
    span = window_of(now - timedelta(days=REPORT_DAYS)), window_of(now + HOUR)
    with babylon.connection() as connection:
        aside, _ = without_scores(connection, judge, *span)
        asked = judges_of(connection, *span).get(judge, 0) + aside
    share = aside / asked if asked else 0.0
    return dg.AssetCheckResult(
        passed=share <= MOST_QUARANTINED,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{aside} of {asked} hours that {judge} was asked about are in quarantine"
        + (f" ({share:.0%}). {QUARANTINE_ADVICE}" if share > MOST_QUARANTINED else "."),
        metadata={"hours": asked, "quarantined": aside, "quarantined_share": share},
    )


@dg.asset_check(
    asset="judge_report",
    description=f"Over the last {REPORT_DAYS} days, the longest transcript of a group is not scored {MOST_LENGTH_POINTS:g} points or more "
    "above or below the shortest at equal P&L.",
)
def length_earns_nothing(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    from babylon_rl.judge.reliability import reliability

    now = babylon.now()
    span = window_of(now - timedelta(days=REPORT_DAYS)), window_of(now + HOUR)
    with babylon.connection() as connection:
        report = reliability(connection, *span, babylon.settings)
    points = report.length_points
    if points is None or points.low is None or points.high is None:
        said, passed = f"Not measured: {report.groups} hours by {report.judge} are too few to tell length from luck.", True
    else:
        said = (
            f"{report.judge} gives the longest transcript {points.value:+.2f} points over the shortest at equal P&L "
            f"(95 % interval {points.low:+.2f} to {points.high:+.2f}, {points.groups} hours)."
        )
        passed = abs(points.value) < MOST_LENGTH_POINTS or points.low <= 0 <= points.high
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=said if passed else f"{said} {LENGTH_ADVICE}",
        metadata={} if points is None else {"points": points.value, "hours": points.groups},
    )


checks_of_judge = [judged_hours, few_in_quarantine, length_earns_nothing]
