"""Scoring by a language model: hours are planned in chunks and judged in one pool, each group by RULER.

RULER is ART's name for relative scoring by a language model: several orders, checked answers, new tries after faulty ones. A score is the
mean over the orders; the reasons of all orders are kept. A group without usable answers goes to quarantine. The result depends only on the
group and the answers, and every answer is stored before it is used: a judge that was stopped anywhere reaches the same result when it
starts again, and pays only for what had not been answered. Each hour is written as soon as it is finished.
"""

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from babylon_rl.episodes.reading import group_version
from babylon_rl.errors import BabylonError, JudgeRefused, JudgeUnavailable
from babylon_rl.interrupts import run_coroutine
from babylon_rl.judge.answers import LASTING, LASTING_TRIES, AnswerFault, FailureStreak
from babylon_rl.judge.client import JudgeClient, JudgeReply
from babylon_rl.judge.consensus import Gain, ScoringResult, agreement, gain, gain_of_words
from babylon_rl.judge.group_outcomes import (
    GroupOutcome,
    Order,
    PendingGroup,
    RequestVerdicts,
    ScoredGroup,
    UnscorableGroup,
    judged_scores,
    merged_order,
    read_verdicts,
    scores_by_order,
)
from babylon_rl.judge.judge_store import HEARTBEAT_S, Budget, JudgeStore, OverBudget, leasing, run_with_heartbeat, task_group
from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE, PlannedHour, ScoringPlan, plan_hours, request_version, rules_version
from babylon_rl.judge.prompt.forms import looked_at, masked_form, without_words
from babylon_rl.judge.prompt.render import unreadable
from babylon_rl.judge.prompt.request import CONTEXT_SHARE, JudgeRequest, RenderedGroup, order_rounds, plan_requests, retry_request
from babylon_rl.judge.prompt.templates import RUBRIC, judge_version, rubric_version
from babylon_rl.llm.tokens import forget_encodings, token_counter
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import scores
from babylon_rl.store.columns import in_parts, storable
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.store.judge_requests import StoredAnswer, count_answers, drop_leases
from babylon_rl.store.windows import lock_windows, reading_chunks, stored_hours
from babylon_rl.types import GroupScores
from babylon_rl.windows import clock_from

CUT_PROMPT = f"{LASTING}the judge's server read "
LEAST_CONTEXT = 512  # tokens; a smaller count is not one of a prompt
LEAST_SHARE, SAME_SIZE = 0.5, 1.2  # of our own count of tokens
LONGEST_TOKENS = 6  # characters, on average
MAX_SHOWN = 4000  # characters of a message or answer in a transcript


@dataclass(eq=False)
class UnusableAnswers(Exception):
    """A request was refused, or every try at it gave an unusable answer."""

    reason: str
    transcript: Sequence[Mapping[str, Any]]


# The outcome of a group whose orders fail differently is the first of these. Any other error is a bug and comes before all.
_BY_SEVERITY = (JudgeRefused, UnusableAnswers, OverBudget, JudgeUnavailable)


@dataclass
class _AnswerTally:
    """Answers of a judgement, ``asked`` of them new, ``lasting`` of them with a fault that further tries meet again."""

    answers: list[StoredAnswer] = field(default_factory=list)
    asked: int = 0
    lasting: int = 0


class GroupJudge:
    """Judges groups with one model; the times of answers are those of the store's clock."""

    def __init__(self, client: JudgeClient, secret: bytes, settings: Settings, store: JudgeStore) -> None:
        self.model = settings.judge_model
        self._client = client
        self._secret = secret
        self._settings = settings
        self._store = store
        # Held until the answer is committed, so a crash loses at most ``judge_concurrency`` paid answers.
        self._slots = asyncio.Semaphore(settings.judge_concurrency)
        self.budget = Budget(settings.judge_budget_usd, self.model, store)
        self._failures = FailureStreak(self.model, settings.judge_tries)
        self._counted: dict[int, int] = {}  # our least count of tokens of a prompt, by the server's

    async def judge(self, group: RenderedGroup, *, looks: bool = True) -> GroupOutcome:
        """Judge one group; a group with flagged sentences a second time with them masked.

        With ``looks`` an hour of the sample is also judged without the words of some of its agents in turn.

        Raises:
            JudgeRefused: the judge answers no request; a retry does not help. A group of which it refuses a request is
                unscorable, and pending where it is one of many in a row.
        """
        tally = _AnswerTally()
        try:
            orders = await self._judgement(group, tally)
            gained = None
            if (form := masked_form(group)) is not None:
                without = await self._judgement(form.group, tally)
                gained = gain(scores_by_order(orders), scores_by_order(without), form.suspects)
                # two more orders are paid only where an agent seems to gain
                if gained.gainers:
                    placebo = await self._orders(form.placebo, range(self._settings.judge_orders), tally)
                    gained = gain(scores_by_order(orders), scores_by_order(without), form.suspects, scores_by_order(placebo))
            words = await self._look(group, orders, tally) if looks else None
            if gained is not None and gained.gainers:
                orders = without
        except UnusableAnswers as unusable:
            return UnscorableGroup(group, unusable.reason, unusable.transcript)
        except (OverBudget, JudgeUnavailable) as reason:
            return PendingGroup(group, str(reason))
        return ScoredGroup(group, orders, tally.answers, tally.asked, gained, form, words)

    async def _look(self, group: RenderedGroup, orders: Sequence[Order], tally: _AnswerTally) -> Gain | None:
        """Gain from agents' words, by orders without each agent's words in turn; None outside the sample."""
        agents = looked_at(group, self._secret, self._settings.judge_look_every)
        if not agents:
            return None
        silent = await _all([self._orders(without_words(group, agent), range(1), tally) for agent in agents])
        return gain_of_words(scores_by_order(orders), {agent: scores_by_order(one)[0] for agent, one in zip(agents, silent, strict=True)})

    async def _judgement(self, group: RenderedGroup, tally: _AnswerTally) -> list[Order]:
        """Orders of one form of a group; further orders where they differ."""
        orders: list[Order] = []
        for numbers in order_rounds(self._settings):
            orders += await self._orders(group, numbers, tally)
            if agreement(scores_by_order(orders)).disagreement <= self._settings.judge_disagreement:
                break
        return orders

    async def _orders(self, group: RenderedGroup, numbers: range, tally: _AnswerTally) -> list[Order]:
        """Ask for some orders; requests that the cache answers cost nothing."""
        plans = [plan_requests(group, self.model, number, self._secret, self._settings) for number in numbers]
        requests = [request for plan in plans for request in plan]
        stored = await self._store.find([request.key for request in requests])
        # reserve for all first tries together, so that a group is not paid in part
        async with self.budget.reserved(request for request in requests if request.key not in stored):
            parts = await _all([self._verdicts(request, stored.get(request.key), tally) for request in requests])
        by_key = dict(zip((request.key for request in requests), parts, strict=True))
        return [merged_order([by_key[request.key] for request in plan]) for plan in plans]

    async def _verdicts(self, first: JudgeRequest, answer: StoredAnswer | None, tally: _AnswerTally) -> RequestVerdicts:
        """First usable answer to a request or a retry of it, with that request."""
        request, transcript = first, list[Mapping[str, Any]]()
        faults: Sequence[str] = ()
        for attempt in range(self._settings.judge_tries):
            # a further try is another request, which may be in the cache, too
            if attempt:
                request = retry_request(first, attempt, self._secret)
                answer = (await self._store.find([request.key])).get(request.key)
            if answer is None:
                try:
                    answer = await self._ask(request, attempt)
                except JudgeRefused as refused:
                    # a refusal of this request alone costs its group the scores; one of all requests ends the run
                    if refused.for_all:
                        raise
                    self._failures.record(request.group.window, [str(refused)], self._settings.judge_tries)
                    self._failures.check()
                    raise UnusableAnswers(str(refused), [*transcript, _exchange(request, attempt, "", [str(refused)])]) from None
                tally.asked += 1
            tally.answers.append(answer)
            if not answer.faults:
                return request, read_verdicts(answer.answer, request)
            faults = answer.faults
            transcript.append(_exchange(request, attempt, answer.answer, faults))
            tally.lasting += any(fault.startswith(LASTING) for fault in faults)
            if tally.lasting >= LASTING_TRIES or faults[0].startswith(CUT_PROMPT):
                self._failures.record(request.group.window, faults[:1], self._settings.judge_tries)
                break
        raise UnusableAnswers(
            f"{len(transcript)} answers of {self.model} could not be used, the last because: {' '.join(faults)}", transcript
        )

    async def _ask(self, request: JudgeRequest, attempt: int) -> StoredAnswer:
        # the first tries of a group are reserved together
        async with self.budget.reserved([request] if attempt else ()), self._slots:
            self._failures.check()
            self._store.check()
            reply = await self._client.ask(request.messages, request.schema)
            answer = self._answer(request, attempt, reply)
            self._failures.record(request.group.window, answer.faults)
            await self._store.add(answer)
        return answer

    def _answer(self, request: JudgeRequest, attempt: int, reply: JudgeReply) -> StoredAnswer:
        """The answer as it is stored: checked, priced and dated."""
        # A server that counts no tokens is paid all the same.
        usd = request.expected_usd if reply.usd is None else reply.usd
        self.budget.paid += usd or 0.0
        group, text = request.group, storable(reply.text)
        fault = reply.fault or self._cut_prompt(request, reply.read_tokens)
        faults, scores = ([fault], None) if fault else _checked(text, request)
        return StoredAnswer(
            key=request.key, window=group.window, judge=self.model, rubric_version=rubric_version(self._settings), order=request.order,
            part=request.part, attempt=attempt, shown_version=group.input_version, ids=list(request.ids.items()), answer=text,
            faults=faults, scores=scores, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens, usd=usd,
            latency_seconds=reply.latency_s, tries=reply.attempts, asked_at=self._store.clock(),
        )  # fmt: skip

    def _cut_prompt(self, request: JudgeRequest, read: int | None) -> str:
        """The fault of a server that read a part of the prompt only, by its own count; empty where it may have read all.

        Tokenizers differ, but none needs half of the tokens of another, or puts more than LONGEST_TOKENS characters into each; and prompts
        of other sizes do not have the same count, but where it is that of a context.
        """
        if read is None or read < LEAST_CONTEXT:
            return ""
        least = self._counted[read] = min(request.tokens, self._counted.get(read, request.tokens))
        whole = read >= LEAST_SHARE * request.tokens or read * LONGEST_TOKENS >= sum(
            len(message["content"]) for message in request.messages
        )
        if whole and (read >= request.tokens or request.tokens <= SAME_SIZE * least):
            return ""
        return (
            f"{CUT_PROMPT}{read} of about {request.tokens} tokens of the prompt. Raise the server's context "
            f"(num_ctx, --max-model-len), or set JUDGE_REQUEST_TOKENS to {int(read * CONTEXT_SHARE)}."
        )


async def _all(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all tasks, then raise the gravest error: a failure must not cancel the others, whose answers are paid for."""
    results = await asyncio.gather(*work, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        # errors that are not in the list have index -1 and come first
        raise min(failed, key=lambda error: next((place for place, kind in enumerate(_BY_SEVERITY) if isinstance(error, kind)), -1))
    return results


def _checked(text: str, request: JudgeRequest) -> tuple[list[str], dict[str, float] | None]:
    """Faults of an answer, or its scores by agent id; as both are stored."""
    try:
        verdicts = read_verdicts(text, request)
    except AnswerFault as fault:
        return [storable(sentence) for sentence in fault.faults], None
    return [], {agent: verdict.score for agent, verdict in verdicts.items()}


def _exchange(request: JudgeRequest, attempt: int, answer: str, faults: Sequence[str]) -> dict[str, Any]:
    return {
        "order": request.order,
        "part": request.part,
        "attempt": attempt,
        # the system message is the same at every try
        "messages": [{"role": m["role"], "content": _short(m["content"])} for m in request.messages[1 if attempt else 0 :]],
        "answer": _short(answer),
        "faults": [storable(sentence) for sentence in faults],
    }


def _short(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN // 2]}\n[{len(text) - MAX_SHOWN} characters left out]\n{text[-(MAX_SHOWN // 2) :]}"


async def run_pool(
    groups: AsyncIterable[RenderedGroup], work: Callable[[RenderedGroup], Coroutine[Any, Any, None]], concurrency: int
) -> None:
    """Judge groups as they arrive: ``work`` judges one, and takes its outcome.

    Everything is cancelled when the run is. The caller limits the requests. This pool limits the groups under way to twice that number, a
    large group counted once for each of its parts, so that neither reading further groups nor writing finished ones leaves the judge idle,
    and the texts of a long range are not held in memory.

    Raises:
        JudgeRefused: the judge answers no request; the other groups are cancelled.
    """
    under_way: dict[asyncio.Task[None], int] = {}
    coming = aiter(groups)
    async with task_group() as tasks:
        # wait for room before reading the next group, so that no group waits in memory
        while (group := await anext(coming, None)) is not None:
            task = tasks.create_task(work(group), name=group.window)
            under_way[task] = -(-len(group.episodes) // group.max_episodes)
            task.add_done_callback(under_way.pop)
            while sum(under_way.values()) >= 2 * concurrency:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)


CHANGED_MEANWHILE = "it changed while it was judged; the next run judges it as it is now"
LARGE_HOUR = 10_000  # trajectories; once it is judged the tokenizers make room for what follows


def load_judge_libraries(settings: Settings) -> None:
    """Import the libraries of the settings' judge. It takes seconds, which processes that are forked from this one are spared."""
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
    """Judge complete hours with JUDGE_MODEL; see score_windows. ``connection`` may be in a transaction only in tests."""
    secret = keep_secret(connection, secrets.token_bytes(32), now)
    run = _ScoringRun(settings, secret, now, len(windows), on_progress, force, stale)
    run.scored.notes += unreadable(connection, settings)
    # however the run ends: answers are written, leases returned, pending hours recorded
    store = JudgeStore(connection, clock_from(now))
    try:
        run_coroutine(run_with_heartbeat(run.judge(store, windows), store, on_beat, beat_s))
    except JudgeRefused as refused:
        run.scored.pending |= dict.fromkeys(run.unfinished, str(refused))  # planned, and without an outcome
        raise
    finally:
        store.close()
        if not connection.closed:
            scores.keep_pending(connection, settings.judge_model, run.scored.pending, now)
    return run.scored


@dataclass
class _ScoringRun:
    """State of one call of score_with_model."""

    settings: Settings
    secret: bytes
    now: datetime
    total: int
    on_progress: Progress
    force: bool
    stale: bool
    scored: ScoringResult = field(default_factory=ScoringResult)
    unfinished: dict[str, PlannedHour] = field(default_factory=dict)
    done: int = 0

    async def judge(self, store: JudgeStore, windows: Sequence[str]) -> None:
        async with JudgeClient(self.settings) as client, leasing(store) as acquire:
            judge = GroupJudge(client, self.secret, self.settings, store)
            answers, _ = await store.run(count_answers, self.settings.judge_model)
            looks = answers >= self.settings.judge_look_after

            async def judge_leased(group: RenderedGroup) -> None:
                # a group that another run has judged by then is answered from the cache
                await acquire(group.window)
                await self._finish(store, await judge.judge(group, looks=looks))

            await run_pool(self._groups(store, windows), judge_leased, self.settings.judge_concurrency)
            self.scored.notes += judge.budget.notes

    async def _groups(self, store: JudgeStore, windows: Sequence[str]) -> AsyncIterator[RenderedGroup]:
        read = await store.run(reading_chunks, windows)
        for chunk in (some for hours in read for some in in_parts(hours, HOURS_PLANNED_AT_ONCE)):
            plan: ScoringPlan = await store.run(plan_hours, chunk, self.settings, self.secret, force=self.force, stale=self.stale)
            self.scored.update(plan.unchanged)
            self.scored.quarantined |= plan.quarantined
            self.scored.by_other_rules += plan.by_other_rules
            self._report_progress(len(chunk) - len(plan.hours))
            self.unfinished |= plan.hours
            for hour in plan.hours.values():
                yield hour.group

    async def _finish(self, store: JudgeStore, outcome: GroupOutcome) -> None:
        window = outcome.group.window
        hour = self.unfinished.pop(window)
        if sum(map(len, hour.trajectories.values())) >= LARGE_HOUR:
            forget_encodings()
        result = await store.run(finish_hour, hour, outcome, self.settings, self.now, store.holder, self.force)
        if isinstance(outcome, ScoredGroup):
            self.scored.asked[window] = outcome.asked, len(outcome.answers) - outcome.asked
        if isinstance(result, GroupScores):
            self.scored[window] = result
        elif isinstance(outcome, UnscorableGroup):
            self.scored.quarantined[window] = result
        # not asked, or judged in vain because the hour changed
        else:
            self.scored.pending[window] = result
        self._report_progress(1)

    def _report_progress(self, hours: int) -> None:
        self.done += hours
        if hours:
            self.on_progress("judging", self.done, self.total)


def finish_hour(
    connection: Connection, hour: PlannedHour, outcome: GroupOutcome, settings: Settings, now: datetime, holder: str, force: bool
) -> GroupScores | str:
    """Write the outcome of an hour and return its lease, in one transaction under the hour's lock.

    Returns:
        Its scores, or the reason why it has none. A judgement is written only if the hour's group has not changed since.
    """
    window = outcome.group.window
    with connection.transaction():
        lock_windows(connection, [window])
        drop_leases(connection, holder, [window])
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
        scores.release(connection, [window])
        shown, orders = outcome.group.input_version, len(outcome.orders)
        criteria = {"rubric": RUBRIC, "rubricVersion": rubric_version(settings), "shown": shown, "orders": orders}
        scores.replace(connection, [scores.NewScores(judged, hour.trajectories, criteria)], now, force=force)
        scores.keep_made_from(connection, {window: hour.sources}, rules_version(settings))
        return replace(judged, changed=True)
