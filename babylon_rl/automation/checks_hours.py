"""Checks of hours (rows, market, leaks, scores): rules with test and advice, and the verdict of each, which names every bad hour.

A check reads the facts of its hours with one query: the newest HOURS_LOOKED_AT hours with data, those that changed within CHANGED_WITHIN,
and the hours of its run. So a later good hour does not hide an earlier bad one, and a run of checks alone needs no hour. A warning stops
nothing: rejection rules leave out rows that do not count, groups without scores do not train, and a person decides whether unusual scores
are wrong. Only a leak is an error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import combinations
from textwrap import shorten
from typing import Any, Generic, TypeVar

import dagster as dg

from babylon_rl.assets.partitions import described, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.conditions import after_hours
from babylon_rl.judge.consensus import rank_with_pnl
from babylon_rl.judge.hindsight import verdicts_with_leaks
from babylon_rl.serving.dagster_client import PARTITION_TAG, RANGE_END, RANGE_START
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import HourLeaks, leaks_by_hour
from babylon_rl.store.judge_report import HourVerdicts
from babylon_rl.store.outcomes import MarketFlags, market_flags
from babylon_rl.store.windows import recent_hours, stored_summaries
from babylon_rl.types import NO_SPREAD, WindowSummary
from babylon_rl.windows import next_window, window_range

HOURS_LOOKED_AT = 24
CHANGED_WITHIN = timedelta(days=1)
HOURS_NAMED = 3
MOST_MALFORMED, MOST_REJECTED = 0.2, 0.5
MALFORMED = ("malformed_json", "malformed_shape")
MOST_TIED = 0.5
MOST_SHORTENED = 0.05
SAME_SCORE = 1e-9
MOVING_PERCENT = 2.0
REASON_CHARACTERS = 200
FLAGS = {
    "start_from_first_price": "no price before the hour and no initialPrice, so its first price in the hour was taken",
    "price_before_not_positive": "its last price before the hour is not above 0, so it started from another",
    "start_price_not_positive": "its start price is not above 0, so its change counts as 0",
    "change_clamped": "its change is beyond the column's 999.99 %",
    "price_clamped": "its price is beyond the column's 99,999,999.99",
    "volume_clamped": "its volume is beyond the column's range",
    "probability_clamped": "its probability is beyond the column's range",
}
IDS_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """A fault of one hour in words, and the first rows, agents or markets concerned."""

    says: str
    ids: tuple[str, ...] = ()


Hour = TypeVar("Hour", WindowSummary, MarketFlags, HourLeaks, HourVerdicts)  # the facts of one hour that a rule looks at
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


def _hours(hours: Sequence[object]) -> str:
    return "1 hour" if len(hours) == 1 else f"{len(hours)} hours"


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})" if total else str(count)


def _odd(hour: WindowSummary, count: int, says: str, ids: tuple[str, ...] = ()) -> Finding | None:
    return Finding(f"{_share(count, hour.rows)} rows {says}", ids) if count else None


ROWS = HourlyChecks("window_groups", lambda connection, windows, settings: stored_summaries(connection, windows))


@ROWS.rule(
    "At most half of the rows are left out, for whatever reason.",
    "`babylon-rl rejected --from {hour} --to {end}` lists each row with its reason and detail.",
)
def few_rows_rejected(hour: WindowSummary, settings: Settings) -> Finding | None:
    count = sum(hour.rejected.values())
    if count <= MOST_REJECTED * hour.rows:
        return None
    reasons = ", ".join(f"{number} {reason}" for reason, number in hour.rejected.items())
    return Finding(f"{_share(count, hour.rows)} rows do not count ({reasons})")


@ROWS.rule(
    "At most a fifth of the rows are malformed.",
    "`babylon-rl rejected --from {hour} --to {end}` says where in stepsJson; mend what writes it.",
)
def few_rows_malformed(hour: WindowSummary, settings: Settings) -> Finding | None:
    count = sum(hour.rejected.get(reason, 0) for reason in MALFORMED)
    return Finding(f"{_share(count, hour.rows)} rows are malformed") if count > MOST_MALFORMED * hour.rows else None


@ROWS.rule(
    "Ready hours hold messages that can train, not only synthetic ones.",
    "Record prompts (docs/howto/recording.md), or set TRAIN_SYNTHETIC=true.",
)
def messages_recorded(hour: WindowSummary, settings: Settings) -> Finding | None:
    if not hour.ready or hour.trainable_sequences:
        return None
    sources = ", ".join(f"{number} {source}" for source, number in hour.message_sources.items() if number)
    return Finding(f"ready, but none of its messages can train ({sources})")


@ROWS.rule(
    "The share of rows with long enough prompts is at least DATA_QUALITY_THRESHOLD.",
    "Readiness counts these rows as poor: record prompts whole, as they were sent.",
    needs=("recorded prompts", lambda hour: hour.quality.prompts > 0),
)
def prompts_long_enough(hour: WindowSummary, settings: Settings) -> Finding | None:
    quality = hour.quality
    if quality.short_prompts <= (1 - settings.data_quality_threshold) * quality.prompts:
        return None
    return Finding(
        f"{_share(quality.short_prompts, quality.prompts)} rows have a short prompt (system up to 50 or user up to 100 characters)"
    )


@ROWS.rule(
    "No agent's trajectory is recorded twice in the hour.",
    "Each copy counts in its agent's episode: delete the copies from trajectories, and record each run once.",
)
def rows_unique(hour: WindowSummary, settings: Settings) -> Finding | None:
    return _odd(hour, hour.quality.duplicate_rows, "repeat the steps of another row of their agent", hour.quality.duplicates)


@ROWS.rule(
    "Start, end, window and steps of every row name the same time.",
    "Compare startTime, endTime, windowId and the steps' timestamp of these rows; all of them are UTC.",
)
def clocks_agree(hour: WindowSummary, settings: Settings) -> Finding | None:
    return _odd(hour, hour.quality.skewed_rows, "have times that contradict each other", hour.quality.clock_skew)


@ROWS.rule(
    "No agent's P&L jumps by more than it could have had at stake.",
    "Scores rest on it: compare agentPnL in stepsJson and finalPnL of these agents; `babylon-rl episodes {hour}` shows start and end.",
)
def pnl_plausible(hour: WindowSummary, settings: Settings) -> Finding | None:
    quality = hour.quality
    if not quality.jumping_agents:
        return None
    agents = "agent's P&L jumps" if quality.jumping_agents == 1 else "agents' P&L jumps"
    return Finding(f"{quality.jumping_agents} {agents} by more than could be won or lost", quality.pnl_jumps)


@ROWS.rule(
    "Every row is about one hour (windowHours is 1).",
    "Each was read as part of its own hour only; have it recorded by the hour.",
)
def one_hour_each(hour: WindowSummary, settings: Settings) -> Finding | None:
    return _odd(hour, hour.quality.other_lengths, "say windowHours other than 1")


MARKET = HourlyChecks("market_outcomes", lambda connection, windows, settings: market_flags(connection, windows))


@MARKET.rule(
    "Every price and probability of the hour is as recorded: none is clamped, none has an unknown start.",
    "`babylon-rl outcomes {hour} --json` shows the flags with the unrounded numbers; compare them with the game's tables.",
)
def outcomes_unflagged(hour: MarketFlags, settings: Settings) -> Finding | None:
    if not hour.flags:
        return None
    by_flag: dict[str, list[str]] = {}
    for entry in hour.flags:
        by_flag.setdefault(entry["flag"], []).append(entry["subject"])
    parts = [f"{len(subjects)} ({', '.join(subjects[:3])}): {FLAGS.get(flag, flag)}" for flag, subjects in by_flag.items()]
    subjects = sorted({entry["subject"] for entry in hour.flags})
    return Finding("; ".join(parts), tuple(subjects[:IDS_LISTED]))


@MARKET.rule(
    "No two organizations share an engine ticker.",
    "The suffix tells them apart, in the order of their ids; news that name the ticker alone stand on both.",
)
def tickers_distinct(hour: MarketFlags, settings: Settings) -> Finding | None:
    if not (tickers := tuple(hour.shared_tickers)):
        return None
    return Finding(f"{', '.join(tickers[:3])}: a second organization with the same ticker", tickers[:IDS_LISTED])


LEAKS = HourlyChecks("hindsight", lambda connection, windows, settings: leaks_by_hour(connection, windows))


@LEAKS.rule(
    "No training text holds outcomes, hidden answers, recorded gameKnowledge or scores.",
    "These sequences never train. Find out how the text came into the agents' prompts, and stop it there: "
    "SELECT * FROM babylon_rl.leaks WHERE \"window\" = '{hour}' shows where each stands.",
    severity=dg.AssetCheckSeverity.ERROR,
)
def no_leaks(hour: HourLeaks, settings: Settings) -> Finding | None:
    if not (leaks := hour.leaks):
        return None
    names = tuple(dict.fromkeys(f"{leak.trajectory_id} {leak.call_id}" for leak in leaks))
    kinds = ", ".join(sorted({leak.kind for leak in leaks}))
    return Finding(f"{len(names)} sequences hold {kinds}, first {names[0]} ({leaks[0].detail})", names[:IDS_LISTED])


SCORES: Need[HourVerdicts] = ("scores", lambda hour: hour.held is not None)
MODEL_SCORES: Need[HourVerdicts] = ("scores by a language model", lambda hour: hour.held is not None and hour.group.judgement is not None)
JUDGED = HourlyChecks("scored_groups", verdicts_with_leaks)


@JUDGED.rule(
    "The judge tells episodes apart: groups have a spread of scores.",
    "Such a group carries no signal and will not be trained.",
    needs=SCORES,
)
def scores_differ(hour: HourVerdicts, settings: Settings) -> Finding | None:
    spread = hour.group.spread
    return Finding(f"all scores are equal (standard deviation {spread:.1g})") if spread < NO_SPREAD else None


@JUDGED.rule(
    "No group is in quarantine or waits for its judge.",
    "`babylon-rl judge quarantine {hour}` shows the tries, `judge retry` asks anew; what waits is asked "
    "for again by itself (`ask_judge_again`).",
)
def groups_have_scores(hour: HourVerdicts, settings: Settings) -> Finding | None:
    reason = hour.pending if hour.quarantined is None else hour.quarantined
    if reason is None:
        return None
    what = "waits for its judge" if hour.quarantined is None else "set aside"
    scores = "without scores" if hour.held is None else f"with the scores of {hour.held.judge} meanwhile"
    return Finding(f"{what} {scores} ({shorten(reason.rstrip('. '), REASON_CHARACTERS, placeholder=' ...')})")


@JUDGED.rule(
    "At most half of the pairs of a group's episodes have the same score.",
    "Equal scores teach nothing: read the explanations with `babylon-rl scores {hour}`; another model may tell more apart.",
    needs=SCORES,
)
def few_ties(hour: HourVerdicts, settings: Settings) -> Finding | None:
    pairs = list(combinations(hour.scores, 2))
    tied = sum(abs(first.score - second.score) < SAME_SCORE for first, second in pairs)
    if not MOST_TIED * len(pairs) < tied < len(pairs):  # that all are equal is scores_differ's to say
        return None
    return Finding(f"{tied} of {len(pairs)} pairs of its episodes have the same score")


@JUDGED.rule(
    "The orders in which a group was shown differ by 0.15 at most.",
    "More orders (JUDGE_ORDERS) or a better model; `babylon-rl judge report` says whether the place is to blame.",
    needs=MODEL_SCORES,
)
def orders_agree(hour: HourVerdicts, settings: Settings) -> Finding | None:
    orders, disagreement = hour.judgement.orders, hour.group.disagreement
    if disagreement <= settings.judge_disagreement:
        return None
    return Finding(f"{orders} orders differ by {disagreement:.2f} on average (at most {settings.judge_disagreement:g} is fine)")


@JUDGED.rule(
    "Scores do not fall as the hour's P&L rises.",
    "A judge may know better than an hour's luck, but not hour after hour: `babylon-rl scores {hour}` has its reasons.",
    needs=SCORES,
)
def scores_follow_pnl(hour: HourVerdicts, settings: Settings) -> Finding | None:
    correlation = rank_with_pnl(hour)
    if correlation is None or correlation >= 0:
        return None
    return Finding(f"scores fall as P&L rises (rank correlation {correlation:+.2f})")


@JUDGED.rule(
    f"Where the market moved by {MOVING_PERCENT:g} % or more, agents that only held are not ranked above those that traded and gained.",
    "To hold and sound wise is a known way to fool a judge: `babylon-rl scores {hour}` has its reasons.",
    needs=SCORES,
)
def holding_not_favoured(hour: HourVerdicts, settings: Settings) -> Finding | None:
    moved = max((abs(move) for move in (hour.mean_change, hour.volatility) if move is not None and math.isfinite(move)), default=0.0)
    if moved < MOVING_PERCENT:
        return None
    entries = [(entry.agent_id, entry.score, *hour.played[entry.agent_id]) for entry in hour.scores if entry.agent_id in hour.played]
    held = [(agent, score) for agent, score, _, trades in entries if trades == 0]
    won = [score for _, score, pnl_usd, trades in entries if trades and pnl_usd > 0]
    above = sum(score > other for _, score in held for other in won)
    if above <= len(held) * len(won) / 2:
        return None
    agents = tuple(agent for agent, score in held if any(score > other for other in won))
    sentence = (
        f"the market moved by {moved:.1f} %, and in {above} of {len(held) * len(won)} pairs an agent that only held is ranked above one"
    )
    return Finding(f"{sentence} that traded and gained", agents)


@JUDGED.rule(
    f"At most {MOST_SHORTENED:.0%} of an hour's steps, and no trade, were shortened to fit the judge's requests.",
    "Take a judge with a larger context, or raise JUDGE_REQUEST_TOKENS where it is set; `babylon-rl score --window {hour} --force` "
    "asks again.",
    needs=MODEL_SCORES,
)
def steps_shown_in_full(hour: HourVerdicts, settings: Settings) -> Finding | None:
    judgement = hour.judgement
    # None of older judgements
    steps, shortened, trades = judgement.steps or 0, judgement.shortened or 0, judgement.decisions_shortened or 0
    if shortened <= MOST_SHORTENED * steps and not trades:
        return None
    share = f"{shortened} of {steps} steps ({shortened / max(1, steps):.0%})"
    return Finding(f"{share} were not shown to the judge in full; trades among them: {trades}")


@JUDGED.rule(
    "No sequence of a scored hour holds what came after it, and no explanation repeats what is hidden from the agents.",
    "Leaking sequences never train (no_leaks of hindsight names them). Explanations stand in aiJudgeReasoning: show them to no agent.",
    needs=SCORES,
)
def nothing_leaks(hour: HourVerdicts, settings: Settings) -> Finding | None:
    parts = [f"{hour.leaked} of its sequences hold what only became known after it"] if hour.leaked else []
    parts += [f"{len(hour.telling)} explanations repeat what is hidden from the agents"] if hour.telling else []
    return Finding(", and ".join(parts), tuple(hour.telling)) if parts else None


@JUDGED.rule(
    "No episode, news or question holds text that may be meant for the judge, and no score follows an agent's words alone.",
    "The page of scored_groups lists each suspicion of {hour} and what it gained. A gain beyond chance does "
    "not count. Where scores follow words, try another JUDGE_MODEL.",
    needs=MODEL_SCORES,
)
def nobody_speaks_to_the_judge(hour: HourVerdicts, settings: Settings) -> Finding | None:
    judgement, scores = hour.judgement, hour.scores
    agents = [score.agent_id for score in scores if score.flags]
    parts = []
    if agents or judgement.context_flags:
        suspicions = sum(len(score.flags) for score in scores)
        parts = [f"{len(agents)} of {len(scores)} episodes hold text that may speak to the judge ({suspicions} suspicions)"]
    parts += [f"{len(judgement.context_flags)} suspicions in what agents share"] if judgement.context_flags else []
    gained = [(score.gain, score.agent_id) for score in scores if score.gain is not None]
    if gained:
        gain, agent = max(gained)
        counts = "the scores with it masked count" if judgement.masked else "no more than chance explains"
        parts.append(f"{agent} gained {gain:+.2f} by it (noise {judgement.noise or 0.0:.2f}): {counts}")
    followed = judgement.followed
    parts += [f"the scores of {', '.join(followed)} follow their words and not their deeds"] if followed else []
    return Finding("; ".join(parts), tuple(dict.fromkeys([*agents, *followed]))) if parts else None


checks_of_hours = [checks.definition() for checks in (ROWS, MARKET, LEAKS, JUDGED)]
