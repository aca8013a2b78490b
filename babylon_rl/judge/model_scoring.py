"""Scoring by a language model: hours are planned in chunks, judged in one pool.

Each hour is written as soon as it is finished. A score is the mean over the orders; the reasons of all orders are kept.
"""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from msgspec.structs import replace

from babylon_rl.episodes.reading import group_version
from babylon_rl.errors import BabylonError, JudgeRefused
from babylon_rl.judge.client import JudgeClient, server_of
from babylon_rl.judge.group_judge import GroupJudge, GroupOutcome, ScoredGroup, UnscorableGroup, run_pool
from babylon_rl.judge.groups import AnswerCounts, ScoringResult, group_scores
from babylon_rl.judge.judge_store import HEARTBEAT_S, JudgeStore, Leases, run_with_heartbeat
from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE, PlannedHour, ScoringPlan, plan_hours
from babylon_rl.judge.prompt.injection import Flag
from babylon_rl.judge.prompt.render import unreadable
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.judge.prompt.rubric import RUBRIC, RUBRIC_VERSION, judge_version
from babylon_rl.judge.versions import request_version, rules_version
from babylon_rl.llm.tokens import forget_encodings, known_sum, token_counter
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.store import scores
from babylon_rl.store.columns import in_parts, storable
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.store.judge_requests import count_answers, drop_leases
from babylon_rl.store.windows import lock_windows, reading_chunks, stored_hours
from babylon_rl.types import GroupScores, Judgement
from babylon_rl.windows import clock_from

CHANGED_MEANWHILE = "it changed while it was judged; the next run judges it as it is now"
_MEAN_DECIMALS = 9  # the mean of the same scores in another order differs in the last bits
MAX_EXCERPT = 200
MAX_PASSAGE = 500  # characters of a line that was masked
LARGE_HOUR = 10_000  # trajectories; once it is judged the tokenizers make room for what follows


def load_judge_libraries(settings: Settings) -> None:
    """Import the libraries of the settings' judge.

    It takes seconds, which processes that are forked from this one are spared.
    """
    if settings.judge_model != HEURISTIC:
        token_counter(settings.judge_model)
        with suppress(BabylonError):  # a missing key is the run's to report
            JudgeClient(settings)


def score_with_model(
    connection: Connection,
    windows: Sequence[str],
    settings: Settings,
    now: datetime,
    *,
    force: bool,
    stale: bool = False,
    on_progress: Progress = no_progress,
    on_beat: Callable[[], None] = lambda: None,
    beat_s: float = HEARTBEAT_S,
) -> ScoringResult:
    """Judge complete hours with JUDGE_MODEL; see score_windows.

    ``connection`` may be in a transaction only in tests.

    Raises:
        JudgeRefused: the judge answers no request (credentials, the model's name); finished hours are written.
    """
    secret = keep_secret(connection, secrets.token_bytes(32), now)
    run = _ScoringRun(settings, secret, now, len(windows), on_progress, force=force, stale=stale)
    run.scored.notes += unreadable(connection, settings)
    # whatever ends the run: answers are written, leases returned, pending hours recorded
    store = JudgeStore(connection, clock_from(now))
    leases = Leases(store)
    try:
        asyncio.run(run_with_heartbeat(run.judge(store, leases, windows), store, on_beat, beat_s))
    except JudgeRefused as refused:
        run.scored.pending |= dict.fromkeys(run.unfinished, str(refused))  # planned, and without an outcome
        raise
    finally:
        store.close()
        leases.drop_all()
        if not connection.closed:
            scores.keep_pending(connection, settings.judge_model, run.scored.pending, now)
    return run.scored.in_order()


class _ScoringRun:
    """State of one call of score_with_model."""

    def __init__(
        self, settings: Settings, secret: bytes, now: datetime, total: int, on_progress: Progress, *, force: bool, stale: bool
    ) -> None:
        self.scored = ScoringResult()
        self._settings = settings
        self._secret = secret
        self._now = now
        self._force, self._stale = force, stale
        self._total = total
        self._on_progress = on_progress
        self.unfinished: dict[str, PlannedHour] = {}
        self._done = 0

    async def judge(self, store: JudgeStore, leases: Leases, windows: Sequence[str]) -> None:
        """Judge all hours that need it."""
        async with JudgeClient(self._settings) as client, leases:
            judge = GroupJudge(client, self._secret, self._settings, store)
            answers, _ = await store.run(count_answers, self._settings.judge_model)
            looks = answers >= self._settings.judge_look_after

            async def judge_leased(group: RenderedGroup) -> GroupOutcome:
                # a group that another run has judged by then is answered from the cache
                async with leases.hold(group.window):
                    return await judge.judge(group, looks=looks)

            async def finish(outcome: GroupOutcome) -> None:
                await self._finish(store, leases.holder, outcome)

            await run_pool(self._groups(store, windows), judge_leased, finish, self._settings.judge_concurrency)
            self.scored.notes += judge.notes

    async def _groups(self, store: JudgeStore, windows: Sequence[str]) -> AsyncIterator[RenderedGroup]:
        """Plan the hours chunk by chunk, and yield the groups to judge."""
        for chunk in await store.run(_chunks, windows):
            plan: ScoringPlan = await store.run(plan_hours, chunk, self._settings, self._secret, force=self._force, stale=self._stale)
            # kept and quarantined hours are done without a request
            self.scored.update(plan.unchanged)
            self.scored.quarantined |= plan.quarantined
            self.scored.by_other_rules += plan.by_other_rules
            self._report_progress(len(chunk) - len(plan.hours))
            self.unfinished |= plan.hours
            for hour in plan.hours.values():
                yield hour.group

    async def _finish(self, store: JudgeStore, holder: str, outcome: GroupOutcome) -> None:
        """Write one outcome and record it in the result."""
        window = outcome.group.window
        hour = self.unfinished.pop(window)
        if sum(map(len, hour.trajectories.values())) >= LARGE_HOUR:
            forget_encodings()
        result = await store.run(finish_hour, hour, outcome, self._settings, self._now, holder, self._force)
        if isinstance(outcome, ScoredGroup):
            self.scored.asked[window] = AnswerCounts(outcome.asked, len(outcome.answers) - outcome.asked)
        if isinstance(result, GroupScores):
            self.scored[window] = result
        elif isinstance(outcome, UnscorableGroup):
            self.scored.quarantined[window] = result
        # not asked, or judged in vain because the hour changed
        else:
            self.scored.pending[window] = result
        self._report_progress(1)

    def _report_progress(self, hours: int) -> None:
        self._done += hours
        if hours:
            self._on_progress("judging", self._done, self._total)


def _chunks(connection: Connection, windows: Sequence[str]) -> list[list[str]]:
    """Split hours into chunks that are planned at once."""
    return [some for chunk in reading_chunks(connection, windows) for some in in_parts(chunk, HOURS_PLANNED_AT_ONCE)]


def finish_hour(
    connection: Connection, hour: PlannedHour, outcome: GroupOutcome, settings: Settings, now: datetime, holder: str, force: bool
) -> GroupScores | str:
    """Write the outcome of an hour and return its lease, in one transaction.

    The transaction holds the hour's lock.

    Returns:
        Its scores, or the reason why it has none. A judgement is written only if the hour's group has not changed since.
    """
    window = outcome.group.window
    with connection.transaction():
        lock_windows(connection, [window])
        drop_leases(connection, holder, [window])
        # no scores: a quarantine is recorded with the version of its request
        if not isinstance(outcome, ScoredGroup):
            if isinstance(outcome, UnscorableGroup):
                transcript = list(map(dict, outcome.transcript))
                entry = scores.Quarantined(
                    window, settings.judge_model, judge_version(settings), outcome.reason, transcript, now, request_version(hour.sources)
                )
                scores.quarantine(connection, entry)
            return outcome.reason
        # the hour may have been read anew while the judge worked
        before = scores.read(connection, [window]).get(window)
        if group_version(stored_hours(connection, [window], settings.min_agents_per_window)[window]) != hour.version:
            return CHANGED_MEANWHILE
        judged = judged_scores(outcome, settings, hour.version)
        # stored scores stay if a training has used them, or if the new ones are equal
        if before is not None and not force:
            if scores.consumed_windows(connection, [window]):
                return before
            if before == judged:
                scores.keep_made_from(connection, {window: hour.sources}, rules_version(settings))
                return before
        # write the new scores, and end a quarantine
        scores.release(connection, [window])
        criteria = {"rubric": RUBRIC, "rubricVersion": RUBRIC_VERSION, "shown": outcome.group.input_version, "orders": len(outcome.orders)}
        scores.replace(connection, [scores.NewScores(judged, hour.trajectories, criteria)], now, force=force)
        scores.keep_made_from(connection, {window: hour.sources}, rules_version(settings))
        return replace(judged, changed=True)


def judged_scores(outcome: ScoredGroup, settings: JudgeSettings, input_version: str) -> GroupScores:
    """Scores of a judged group, not stored."""
    group, orders, agreement = outcome.group, outcome.orders, outcome.agreement
    gains = {} if outcome.gain is None else outcome.gain.by_agent
    scores = {agent: (round(score, _MEAN_DECIMALS), _reasoning(outcome, agent)) for agent, score in agreement.scores.items()}
    whole = group_scores(group.window, settings.judge_model, judge_version(settings), scores, input_version)
    episodes = {episode.agent_id: episode for episode in group.episodes}
    entries = tuple(
        replace(
            entry,
            disagreement=agreement.by_agent[entry.agent_id],
            order_scores=tuple(order.verdicts[entry.agent_id].score for order in orders),
            places=tuple(order.places[entry.agent_id] for order in orders),
            shown_tokens=episodes[entry.agent_id].tokens,
            flags=tuple(flag_words(flag) for flag in episodes[entry.agent_id].flags),
            gain=gains.get(entry.agent_id),
        )
        for entry in whole.scores
    )
    judgement = _judgement(outcome, server_of(settings, settings.judge_model))
    return replace(whole, scores=entries, disagreement=agreement.disagreement, judgement=judgement)


def flag_words(flag: Flag) -> str:
    """One line on a flag: kind, place and excerpt."""
    return storable(f"{flag.kind} in {flag.where}: {flag.excerpt[:MAX_EXCERPT]}")


def _reasoning(outcome: ScoredGroup, agent: str) -> str:
    """The judge's explanations of an episode, one per order unless all are equal."""
    verdicts = [order.verdicts[agent] for order in outcome.orders]
    if len({verdict.explanation for verdict in verdicts}) == 1:
        return storable(verdicts[0].explanation)
    return storable("\n".join(f"Order {number} ({verdict.score:.2f}): {verdict.explanation}" for number, verdict in enumerate(verdicts, 1)))


def _judgement(outcome: ScoredGroup, server: str) -> Judgement:
    """Facts on a judgement: orders, tokens, dollars, versions of the prompt."""
    # The same answers in another order of arrival are the same judgement.
    answers = sorted(outcome.answers, key=lambda answer: (answer.order, answer.part, answer.attempt))
    usd = [answer.usd for answer in answers]
    return Judgement(
        orders=len(outcome.orders),
        tau=outcome.agreement.tau,
        requests=len(answers),
        prompt_tokens=known_sum(answer.prompt_tokens for answer in answers),
        completion_tokens=known_sum(answer.completion_tokens for answer in answers),
        usd=None if None in usd else math.fsum(part for part in usd if part is not None),
        seconds=math.fsum(answer.latency_seconds for answer in answers),
        shown_version=outcome.group.input_version,
        server=server,
        steps=outcome.group.steps,
        shortened=outcome.group.shortened,
        decisions_shortened=outcome.group.decisions_shortened,
        context_flags=tuple(flag_words(flag) for flag in outcome.group.context_flags),
        masked=None if outcome.gain is None else bool(outcome.gain.gainers),
        noise=None if outcome.gain is None else outcome.gain.noise,
        masked_version="" if outcome.masked is None else outcome.masked.group.input_version,
        masked_passages=() if outcome.masked is None else tuple(storable(line[:MAX_PASSAGE]) for line in outcome.masked.passages),
        gainers=() if outcome.gain is None else outcome.gain.gainers,
        words=None if outcome.words is None else dict(outcome.words.by_agent),
        words_noise=None if outcome.words is None else outcome.words.noise,
        followed=() if outcome.words is None else outcome.words.gainers,
    )
