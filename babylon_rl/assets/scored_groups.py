"""Asset ``scored_groups``: scores of every ready hour's group, its episodes compared with one another."""

from itertools import groupby
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import AS_LOADED, HourReport, counts, embedded, hourly_asset, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.client import judge_addresses
from babylon_rl.judge.consensus import ScoringResult
from babylon_rl.judge.parts import time_of
from babylon_rl.judge.plan import judge_rules
from babylon_rl.judge.scoring import HOURS_PER_RUN, score_windows
from babylon_rl.reporting.numbers import shortened
from babylon_rl.reporting.plots import bar_plot
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.training.freezing import drop_before_judging
from babylon_rl.types import GroupScores

OTHER_RULES = (
    "A rule, a setting or the judge has changed since: the scores stand. `babylon-rl score --stale --dry-run` says what it costs to judge "
    "such hours anew, without --dry-run it does so."
)
NO_GROUP, PENDING, QUARANTINED = "no group", "pending", "quarantined"


def hours_per_run(settings: Settings) -> int | None:
    """The most hours of a run; None for the heuristic, as fast as reading."""
    return None if settings.judge_model == HEURISTIC else HOURS_PER_RUN


_MOST = hours_per_run(AS_LOADED)


@hourly_asset(
    deps=["window_groups", "market_outcomes"],
    group_name="judge",
    code_version=judge_rules(AS_LOADED),
    backfill_policy=dg.BackfillPolicy.single_run() if _MOST is None else dg.BackfillPolicy.multi_run(_MOST),
    table="babylon_rl.episode_scores",
    columns={
        "window": ("varchar(50)", "The hour; one group"),
        "agentId": ("text", "The agent whose episode was judged"),
        "score": ("double precision", "0 to 1"),
        "rank": ("integer", "1 is the best; equal scores share the better rank"),
        "advantage": ("double precision", "(score - group mean) / population standard deviation"),
        "disagreement": ("double precision", "Between the orders in which the group was shown"),
        "reasoning": ("text", "What the judge said"),
    },
    says="Judges the usable episodes of a ready hour as one group. An hour that has not changed since is not judged again.",
    when_red="`babylon-rl verify-system` says whether the judge can be asked, `babylon-rl judge quarantine` which hours it could not "
    "answer. Overdue: no hour was scored lately; `babylon-rl verify-data` says whether rows come.",
)
def scored_groups(connection: Connection, windows: list[str], babylon: Babylon, pictures: frozenset[str]) -> dict[str, HourReport]:
    log = dg.AssetExecutionContext.get().log

    def tell(what: str, done: int, total: int) -> None:
        babylon.on_progress(what, done, total)
        if total > 1:
            log.info(f"{what}: {done} of {total} hours")

    if endpoint := judge_addresses(babylon.settings, babylon.settings.judge_model):
        log.info(f"Judged by {endpoint}.")
    dropout = drop_before_judging(connection, windows, babylon.settings, babylon.now())
    if dropout.dropped:
        log.info(f"Dropout leaves out {len(dropout.dropped)} episodes: the judge is asked about the other {len(dropout.kept)}.")
    scores = score_windows(connection, windows, babylon.settings, babylon.now(), on_progress=tell)
    for sentence in scores.notes:
        log.warning(sentence)
    return {window: _report(window, scores, drawn=window in pictures) for window in windows}


def _report(window: str, scores: ScoringResult, *, drawn: bool) -> HourReport:
    group = scores.get(window)
    if group is not None:
        return _scored(group, scores, drawn=drawn)
    if window in scores.pending:
        return HourReport(PENDING, counts(0, judged="pending: it waits for another run", reason=scores.pending[window]))
    if window in scores.quarantined:
        advice = f"`babylon-rl judge quarantine` shows the transcript, `babylon-rl judge retry {window}` asks again."
        return HourReport(QUARANTINED, counts(0, judged="no: quarantined", reason=scores.quarantined[window], advice=advice))
    return HourReport(NO_GROUP, counts(0, judged="no: the hour has too few usable episodes for a group"))


def _scored(group: GroupScores, scores: ScoringResult, *, drawn: bool) -> HourReport:
    metadata = counts(
        group.group_size,
        judge=group.judge,
        judge_version=group.judge_version,
        mean=group.mean,
        spread=group.spread,
        has_spread=group.has_spread,
        disagreement=group.disagreement,
        changed=group.changed,
        **_costs(group, scores),
    )
    if group.window in scores.by_other_rules:
        metadata["other_rules"] = dg.MetadataValue.text(OTHER_RULES)
    if drawn:
        title = f"Scores by agent, {group.window} ({group.judge})"
        metadata |= embedded([bar_plot(title, "score, 0 to 1", [(s.agent_id, s.score) for s in group.scores])])
    metadata["scores"] = table(
        [
            {"rank": s.rank, "agent": s.agent_id, "score": s.score, "advantage": s.advantage, "reasoning": shortened(s.reasoning, 300)}
            for s in group.scores
        ]
    )
    if group.parts:
        metadata["parts"] = table(_parts(group))
    judgement = group.judgement
    context_flagged = [] if judgement is None else [{"agent": "-", "suspicion": flag} for flag in judgement.context_flags]
    # Tables only if there is something to show: suspicious texts, what they and the agents' words gained, what was masked.
    flagged = [{"agent": s.agent_id, "score": s.score, "suspicion": flag} for s in group.scores for flag in s.flags] + context_flagged
    gained = [{"agent": s.agent_id, "score": s.score, "gain": s.gain} for s in group.scores if s.gain is not None]
    masked = [] if judgement is None else [{"masked": line} for line in judgement.masked_passages]
    words = [] if judgement is None or judgement.words is None else [{"agent": a, "gain": g} for a, g in judgement.words.items()]
    tables: dict[str, list[dict[str, Any]]] = {
        "injection_flags": flagged,
        "injection_gains": gained,
        "masked_passages": masked,
        "gain_of_words": words,
    }
    metadata |= {name: table(rows) for name, rows in tables.items() if rows}
    return HourReport(group.data_version, metadata)


def _parts(group: GroupScores) -> list[dict[str, Any]]:
    rows = []
    for start, own in groupby(group.parts, key=lambda part: part.start_minute):
        acted = list(own)
        best = max(acted, key=lambda part: part.score)
        times = f"{time_of(group.window, start)} to {time_of(group.window, best.end_minute)}"
        rows.append({"part": times, "agents": len(acted), "best": best.agent_id, "score": best.score, "advantage": best.advantage})
    return rows


def _costs(group: GroupScores, scores: ScoringResult) -> dict[str, Any]:
    """Tokens and cost of a language model judge; empty for the heuristic. Some numbers are of the whole judgement, others of this run."""
    judgement = group.judgement
    if judgement is None:
        return {}
    asked, cached = scores.asked.get(group.window, (0, judgement.requests))
    masked = judgement.masked is not None  # flagged sentences, whose gain was measured then
    return {
        "orders": judgement.orders,
        "kendall_tau": judgement.tau,
        "requests": judgement.requests,
        "asked_now": asked,
        "cache_hits": cached,
        "prompt_tokens": judgement.prompt_tokens,
        "completion_tokens": judgement.completion_tokens,
        "usd": "unknown: the judge's price is in no table" if judgement.usd is None else judgement.usd,
        "judge_seconds": judgement.seconds,
        "steps": judgement.steps,  # None, and left out, of older judgements; so are the three below
        "shortened_steps": judgement.shortened,
        "shortened_share": None if judgement.shortened is None else judgement.shortened / max(1, judgement.steps or 0),
        "shortened_decisions": judgement.decisions_shortened,
        "flagged_episodes": sum(bool(score.flags) for score in group.scores),
        "masked_scores_count": judgement.masked,
        "largest_gain": max(score.gain or 0.0 for score in group.scores) if masked else None,
        "noise_of_gain": judgement.noise or 0.0 if masked else None,
    }
