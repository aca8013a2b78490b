"""RULER for one group: several orders, checked answers, new tries after faulty ones.

RULER is ART's name for relative scoring by a language model. A group without usable answers goes to quarantine. The result depends only
on the group and the answers, and every answer is stored before it is used: a judge that was stopped anywhere reaches the same result when
it starts again, and pays only for what had not been answered.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.errors import JudgeRefused, JudgeUnavailable
from babylon_rl.judge.answers import LASTING, LASTING_TRIES, AnswerFault, EpisodeVerdict, FailureStreak, read_answer
from babylon_rl.judge.budget import Budget, OverBudget, expected_usd
from babylon_rl.judge.client import JudgeClient, JudgeReply
from babylon_rl.judge.consensus import Agreement, Gain, agreement, gain, gain_of_words, merge
from babylon_rl.judge.judge_store import JudgeStore
from babylon_rl.judge.prompt.forms import MaskedGroup, looked_at, masked_form, without_words
from babylon_rl.judge.prompt.request import CONTEXT_SHARE, JudgeRequest, RenderedGroup, order_rounds, plan_requests, retry_request
from babylon_rl.judge.prompt.rubric import RUBRIC_VERSION
from babylon_rl.settings import Settings
from babylon_rl.store.columns import storable
from babylon_rl.store.judge_requests import StoredAnswer

FIRST_TRY = 0  # at a request; each further try is a new request
CUT_PROMPT = f"{LASTING}the judge's server read "
LEAST_CONTEXT = 512  # tokens; a smaller count is not one of a prompt
LEAST_SHARE, SAME_SIZE = 0.5, 1.2  # of our own count of tokens
LONGEST_TOKENS = 6  # characters, on average
MAX_SHOWN = 4000  # characters of a message or answer in a transcript


@dataclass(frozen=True)
class Order:
    """One order of a group: verdict and place of every agent.

    Places run from 0 (first) to 1 (last); the mean where the agent stood in several parts.
    """

    verdicts: Mapping[str, EpisodeVerdict]
    places: Mapping[str, float]


@dataclass(frozen=True)
class ScoredGroup:
    """Outcome with scores: orders, their agreement, and the answers, ``asked`` of them new.

    ``gain`` is that of the group's flagged sentences, None where it has none; where an agent gained by them, the orders are those of
    ``masked``. ``words`` is the gain of agents' own words, None but in the hours of the sample.
    """

    group: RenderedGroup
    orders: Sequence[Order]
    agreement: Agreement
    answers: Sequence[StoredAnswer]
    asked: int
    gain: Gain | None = None
    masked: MaskedGroup | None = None
    words: Gain | None = None


@dataclass(frozen=True)
class UnscorableGroup:
    """A group without scores, after a refusal or only unusable answers; it goes to quarantine.

    ``transcript`` holds the tries, shortened.
    """

    group: RenderedGroup
    reason: str
    transcript: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PendingGroup:
    """A group that was not judged now, for a reason that may pass."""

    group: RenderedGroup
    reason: str


GroupOutcome = ScoredGroup | UnscorableGroup | PendingGroup
_Part = tuple[JudgeRequest, Mapping[str, EpisodeVerdict]]  # a request, and its verdicts by agent id


class UnusableAnswers(Exception):
    """A request was refused, or every try at it gave an unusable answer."""

    def __init__(self, reason: str, transcript: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(reason)
        self.transcript = transcript


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
        self._budget = Budget(settings.judge_budget_usd, self.model, store)
        self._failures = FailureStreak(self.model, settings.judge_tries)
        self._counted: dict[int, int] = {}  # our least count of tokens of a prompt, by the server's

    @property
    def notes(self) -> list[str]:
        """Sentences on limits that could not be enforced."""
        return self._budget.notes

    async def judge(self, group: RenderedGroup, *, looks: bool = True) -> GroupOutcome:
        """Judge one group; a group with flagged sentences a second time with them masked.

        With ``looks`` an hour of the sample is also judged without the words of some of its agents in turn.

        Raises:
            JudgeRefused: the judge answers no request; a retry does not help. A group of which it refuses a request is
                unscorable, and pending where it is one of many in a row.
        """
        tally = _AnswerTally()
        try:
            orders, agreed = await self._judgement(group, tally)
            form = masked_form(group)
            gained = None
            if form is not None:
                without, masked = await self._judgement(form.group, tally)
                gained = gain(_scores(orders), _scores(without), form.suspects)
                # the price of two more orders only where somebody seems to gain
                if gained.gainers:
                    placebo = await self._orders(form.placebo, range(self._settings.judge_orders), tally)
                    gained = gain(_scores(orders), _scores(without), form.suspects, _scores(placebo))
            words = await self._look(group, orders, tally) if looks else None
            if gained is not None and gained.gainers:
                orders, agreed = without, masked
        except UnusableAnswers as unusable:
            return UnscorableGroup(group, str(unusable), unusable.transcript)
        except (OverBudget, JudgeUnavailable) as reason:
            return PendingGroup(group, str(reason))
        return ScoredGroup(group, orders, agreed, tally.answers, tally.asked, gained, form, words)

    async def _look(self, group: RenderedGroup, orders: Sequence[Order], tally: _AnswerTally) -> Gain | None:
        """The gain of agents' words, from one order without those of each agent in turn; None of hours outside the sample."""
        agents = looked_at(group, self._secret, self._settings.judge_look_every)
        if not agents:
            return None
        silent = await _all([self._orders(without_words(group, agent), range(1), tally) for agent in agents])
        return gain_of_words(_scores(orders), {agent: _scores(one)[0] for agent, one in zip(agents, silent, strict=True)})

    async def _judgement(self, group: RenderedGroup, tally: _AnswerTally) -> tuple[list[Order], Agreement]:
        """Orders of one form of a group and their agreement; further orders where they differ."""
        orders: list[Order] = []
        for numbers in order_rounds(self._settings):
            orders += await self._orders(group, numbers, tally)
            agreed = agreement(_scores(orders))
            if agreed.disagreement <= self._settings.judge_disagreement:
                break
        return orders, agreed

    async def _orders(self, group: RenderedGroup, numbers: range, tally: _AnswerTally) -> list[Order]:
        """Ask for some orders; requests that the cache answers cost nothing."""
        plans = [plan_requests(group, self.model, number, self._secret, self._settings) for number in numbers]
        requests = [request for plan in plans for request in plan]
        stored = await self._store.find([request.key for request in requests])
        # reserve for all first tries together, so that a group is not paid in part
        async with self._budget.reserved(_sizes(request for request in requests if request.key not in stored)):
            parts = await _all([self._verdicts(request, stored.get(request.key), tally) for request in requests])
        by_key = dict(zip((request.key for request in requests), parts, strict=True))
        return [_order([by_key[request.key] for request in plan]) for plan in plans]

    async def _verdicts(self, first: JudgeRequest, answer: StoredAnswer | None, tally: _AnswerTally) -> _Part:
        """First usable answer to a request or a retry of it, with that request."""
        request, transcript = first, list[Mapping[str, Any]]()
        faults: Sequence[str] = ()
        for attempt in range(self._settings.judge_tries):
            # a further try is another request, which may be in the cache, too
            if attempt != FIRST_TRY:
                request = retry_request(first, attempt, self._secret)
                answer = (await self._store.find([request.key])).get(request.key)
            if answer is None:
                try:
                    answer = await self._ask(request, attempt)
                except JudgeRefused as refused:
                    # a refusal of this request alone costs its group the scores; one of all requests ends the run
                    if refused.for_all:
                        raise
                    self._failures.record_refusal(request.window, str(refused))
                    self._failures.check()
                    raise UnusableAnswers(str(refused), [*transcript, _exchange(request, attempt, "", [str(refused)])]) from None
                tally.asked += 1
            tally.answers.append(answer)
            if not answer.faults:
                verdicts = read_answer(answer.answer, list(request.ids))
                return request, {request.ids[shown]: verdict for shown, verdict in verdicts.items()}
            faults = answer.faults
            transcript.append(_exchange(request, attempt, answer.answer, faults))
            tally.lasting += any(fault.startswith(LASTING) for fault in faults)
            if tally.lasting >= LASTING_TRIES or faults[0].startswith(CUT_PROMPT):
                self._failures.record_refusal(request.window, faults[0])
                break
        raise UnusableAnswers(
            f"{len(transcript)} answers of {self.model} could not be used, the last because: {' '.join(faults)}", transcript
        )

    async def _ask(self, request: JudgeRequest, attempt: int) -> StoredAnswer:
        """Ask once and store the answer before it is used."""
        # The group's first requests were reserved together.
        async with self._budget.reserved(() if attempt == FIRST_TRY else _sizes([request])), self._slots:
            self._failures.check()
            self._store.check()
            reply = await self._client.ask(request.messages, request.schema)
            answer = self._answer(request, attempt, reply)
            self._failures.record_answer(request.window, answer.faults)
            await self._store.add(answer)
        return answer

    def _answer(self, request: JudgeRequest, attempt: int, reply: JudgeReply) -> StoredAnswer:
        """The answer as it is stored: checked, priced and dated."""
        # A server that counts no tokens is paid all the same.
        usd = expected_usd(self.model, request.tokens, len(request.ids)) if reply.usd is None else reply.usd
        self._budget.pay(usd)
        text = storable(reply.text)
        fault = reply.fault or self._cut_prompt(request, reply.read_tokens)
        faults, scores = ([fault], None) if fault else _checked(text, request)
        return StoredAnswer(
            key=request.key, window=request.window, judge=self.model, rubric_version=RUBRIC_VERSION, order=request.order,
            part=request.part, attempt=attempt, shown_version=request.group.input_version, ids=list(request.ids.items()), answer=text,
            faults=faults, scores=scores,
            prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens, usd=usd,
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


def _scores(orders: Sequence[Order]) -> list[dict[str, float]]:
    """Score by agent in each order."""
    return [{agent: verdict.score for agent, verdict in order.verdicts.items()} for order in orders]


def _sizes(requests: Iterable[JudgeRequest]) -> Iterator[tuple[int, int]]:
    """Prompt tokens and episodes of some requests, counted when they are needed."""
    return ((request.tokens, len(request.ids)) for request in requests)


async def _all(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all; the gravest error is raised only after every task has ended.

    A failure must not cancel the others, whose answers are paid for.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        # errors that are not in the list have index -1 and come first
        raise min(failed, key=lambda error: next((place for place, kind in enumerate(_BY_SEVERITY) if isinstance(error, kind)), -1))
    return results


def _order(parts: Sequence[_Part]) -> Order:
    """Merge the parts of one order into one verdict and place per agent."""
    scores = merge([{agent: verdict.score for agent, verdict in part.items()} for _, part in parts])
    explanations: dict[str, str] = {}
    places: dict[str, list[float]] = {}
    for request, part in parts:
        for place, agent in enumerate(request.ids.values()):
            # an anchor stands in several parts: its place is their mean, and its explanation that of the first
            places.setdefault(agent, []).append(place / max(1, len(request.ids) - 1))
            explanations.setdefault(agent, part[agent].explanation)
    verdicts = {agent: EpisodeVerdict(score, explanations[agent]) for agent, score in scores.items()}
    return Order(verdicts, {agent: sum(own) / len(own) for agent, own in places.items()})


def _checked(text: str, request: JudgeRequest) -> tuple[list[str], dict[str, float] | None]:
    """Faults of an answer, or its scores by agent id; as both are stored."""
    try:
        verdicts = read_answer(text, list(request.ids))
    except AnswerFault as fault:
        return [storable(sentence) for sentence in fault.faults], None
    return [], {request.ids[shown]: verdict.score for shown, verdict in verdicts.items()}


def _exchange(request: JudgeRequest, attempt: int, answer: str, faults: Sequence[str]) -> dict[str, Any]:
    """One try as an entry of a quarantine's transcript."""
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
    groups: AsyncIterable[RenderedGroup],
    judge: Callable[[RenderedGroup], Awaitable[GroupOutcome]],
    done: Callable[[GroupOutcome], Awaitable[None]],
    concurrency: int,
) -> None:
    """Judge groups as they arrive and pass each outcome to ``done``.

    Everything is cancelled when the run is. The caller limits the requests. This pool limits the groups under way to twice that number, a
    large group counted once for each of its parts, so that neither reading further groups nor writing finished ones leaves the judge idle,
    and the texts of a long range are not held in memory.

    Raises:
        JudgeRefused: the judge answers no request; the other groups are cancelled.
    """
    under_way: dict[asyncio.Task[None], int] = {}

    async def one(group: RenderedGroup) -> None:
        await done(await judge(group))

    coming = aiter(groups)
    try:
        async with asyncio.TaskGroup() as tasks:
            # room is waited for before the next group is read, so that no group waits in memory
            while (group := await anext(coming, None)) is not None:
                task = tasks.create_task(one(group), name=group.window)
                under_way[task] = -(-len(group.episodes) // group.max_episodes)
                task.add_done_callback(under_way.pop)
                while sum(under_way.values()) >= 2 * concurrency:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    except BaseExceptionGroup as several:
        raise _first(several) from None


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others; an interruption comes before any error."""
    leaves: list[BaseException] = []
    for error in several.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if not isinstance(error, Exception)), leaves[0])
