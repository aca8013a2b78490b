"""RULER without a database: orders, their agreement, the cache, mending, and the pool, against a scripted judge over HTTP."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from babylon_rl.errors import JudgeRefused
from babylon_rl.judge.answers import LASTING
from babylon_rl.judge.client import JudgeClient, JudgeReply
from babylon_rl.judge.consensus import agreement, kendall_tau
from babylon_rl.judge.group_judge import GroupJudge, run_pool
from babylon_rl.judge.group_outcomes import GroupOutcome, PendingGroup, ScoredGroup, UnscorableGroup, judged_scores
from babylon_rl.judge.parts import Part
from babylon_rl.judge.plan import judge_rules
from babylon_rl.judge.prompt.request import ActedPart, RenderedEpisode, RenderedGroup, plan_requests
from babylon_rl.judge.prompt.templates import system_prompt
from babylon_rl.settings import Settings
from babylon_rl_tests.judge.in_memory import MemoryCache, judge_groups
from babylon_rl_tests.judge.model_judge import PRICED, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.scripted_judge.judge import CONTENT_FAULTS, ScriptedJudge

SECRET = b"s" * 32


def group(window: str = "2025-11-15T10:00", agents: int = 5) -> RenderedGroup:
    """The agent a<n> earned 100 * n dollars."""
    episodes = [RenderedEpisode(f"I traded {n} times in {window}.", 10, agent_id=f"a{n}", pnl=100.0 * n, steps=5) for n in range(agents)]
    return RenderedGroup(window, ("The market moved.",), "", tuple(episodes), f"version of {window}, {agents}")


def groups(number: int) -> list[RenderedGroup]:
    return [group(f"2025-11-{15 + n // 24:02}T{n % 24:02}:00") for n in range(number)]


def judge_all(settings: Settings, some: Sequence[RenderedGroup], cache: MemoryCache) -> dict[str, GroupOutcome]:
    async def run() -> dict[str, GroupOutcome]:
        async with JudgeClient(settings) as caller:
            return await judge_groups(some, caller, SECRET, settings, cache)

    return asyncio.run(run())


@pytest.mark.slow
def test_large_groups_are_not_held_beside_one_another(settings: Settings) -> None:
    """Groups of 60 are as many requests an order as the pool has room for, those of 5 are one."""
    assert [most_held(settings, agents) for agents in (5, 60)] == [4, 1]


def most_held(settings: Settings, agents: int) -> int:
    """Groups under way at once, of six that a judge of two requests at a time is asked about."""
    held = most = 0

    async def coming() -> AsyncIterator[RenderedGroup]:
        nonlocal held, most
        for number in range(6):
            held += 1
            most = max(most, held)
            yield replace(group(f"2025-11-15T{number:02}:00", agents), max_episodes=16)

    async def run(chosen: Settings) -> None:
        async with JudgeClient(chosen) as caller:
            judge = GroupJudge(caller, SECRET, chosen, MemoryCache())

            async def work(group: RenderedGroup) -> None:
                nonlocal held
                assert isinstance(await judge.judge(group), ScoredGroup)
                held -= 1

            await run_pool(coming(), work, chosen.judge_concurrency)

    with judging(ScriptedJudge(latency_s=0.05)) as served:
        asyncio.run(run(asking(settings, served.url, judge_concurrency=2)))
    return most


def judged(outcomes: dict[str, GroupOutcome]) -> list[ScoredGroup]:
    found = [outcome for outcome in outcomes.values() if isinstance(outcome, ScoredGroup)]
    assert len(found) == len(outcomes), outcomes
    return found


def requests(judge: Judge) -> int:
    return int(judge.stats()["requests"])


def test_the_score_is_the_mean_and_the_disagreement_the_mean_difference() -> None:
    found = agreement([{"b": 0.2, "a": 0.9}, {"a": 0.7, "b": 0.2}, {"a": 0.5, "b": 0.8}])
    assert found.scores == pytest.approx({"a": 0.7, "b": 0.4})
    assert found.by_agent == pytest.approx({"a": (0.2 + 0.4 + 0.2) / 3, "b": (0 + 0.6 + 0.6) / 3})
    assert found.disagreement == pytest.approx((0.8 / 3 + 0.4) / 2)
    assert found.tau == pytest.approx((1 - 1 - 1) / 3)


def test_a_single_order_agrees_with_itself_and_orders_without_a_ranking_have_no_tau() -> None:
    alone = agreement([{"a": 0.5}])
    assert (alone.disagreement, alone.tau, alone.scores) == (0.0, None, {"a": 0.5})
    assert kendall_tau({"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.9}) is None
    assert kendall_tau({"a": 0.1, "b": 0.2, "c": 0.2}, {"a": 0.1, "b": 0.2, "c": 0.3}) == pytest.approx(2 / 6**0.5)


def test_every_order_is_asked_and_the_scores_are_those_of_the_agents(settings: Settings) -> None:
    with judging(ScriptedJudge(position_bias=0.3)) as judge:
        (found,) = judged(judge_all(asking(settings, judge.url), [group()], MemoryCache()))
        assert requests(judge) == 2
    assert len(found.orders) == 2 and found.asked == 2
    assert list(found.agreement.scores) == [f"a{n}" for n in range(5)]
    ranked = sorted(found.agreement.scores, key=lambda agent: found.agreement.scores[agent])
    assert ranked == [f"a{n}" for n in range(5)]
    assert [order.places["a0"] + order.places["a4"] for order in found.orders] and found.agreement.disagreement > 0
    assert {order.places["a0"] for order in found.orders} != {0.0}


def test_a_second_run_asks_nothing_and_comes_to_the_same(settings: Settings) -> None:
    cache = MemoryCache()
    with judging(ScriptedJudge(noise=0.1)) as judge:
        first = judged(judge_all(asking(settings, judge.url), groups(3), cache))
        asked = requests(judge)
        again = judged(judge_all(asking(settings, judge.url), groups(3), cache))
        assert requests(judge) == asked == 6
    assert [(one.agreement, one.orders) for one in first] == [(one.agreement, one.orders) for one in again]
    assert [one.asked for one in again] == [0, 0, 0]


def test_orders_that_disagree_are_followed_by_more_up_to_the_most(settings: Settings) -> None:
    with judging(ScriptedJudge(noise=0.3)) as judge:
        for orders, most, asked in ((2, 4, 4), (2, 5, 4), (2, 3, 2), (3, 4, 4)):
            suspicious = asking(settings, judge.url, judge_disagreement=0.0, judge_orders=orders, judge_max_orders=most)
            assert [len(found.orders) for found in judged(judge_all(suspicious, [group()], MemoryCache()))] == [asked]
        lenient = asking(settings, judge.url, judge_disagreement=1.0)
        assert [len(found.orders) for found in judged(judge_all(lenient, [group()], MemoryCache()))] == [2]
        fixed = asking(settings, judge.url, judge_orders=4, judge_max_orders=3, judge_disagreement=0.0)
        assert [len(found.orders) for found in judged(judge_all(fixed, [group()], MemoryCache()))] == [4]


def test_by_default_further_orders_leave_nothing_of_what_a_place_gains(settings: Settings) -> None:
    with judging(ScriptedJudge(noise=0.02, position_bias=0.4)) as judge:
        chosen = asking(settings, judge.url, judge_orders=2, judge_disagreement=settings.judge_disagreement)
        found = judged(judge_all(chosen, [group(window.window, 8) for window in groups(12)], MemoryCache()))
    assert {4} <= {len(outcome.orders) for outcome in found} <= {2, 4}
    for outcome in found:
        for agent in outcome.agreement.scores:
            assert sum(order.places[agent] for order in outcome.orders) == pytest.approx(len(outcome.orders) / 2), "in the middle"


def test_a_server_that_counts_no_tokens_is_held_to_the_budget(settings: Settings) -> None:
    class Uncounted:
        """Asks a judge and forgets what it counted."""

        def __init__(self, judge: JudgeClient) -> None:
            self.judge = judge

        async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, Any]) -> JudgeReply:
            reply = await self.judge.ask(messages, schema)
            return replace(reply, prompt_tokens=None, completion_tokens=None, usd=None)

    async def run(chosen: Settings, cache: MemoryCache) -> dict[str, GroupOutcome]:
        async with JudgeClient(chosen) as caller:
            return await judge_groups(groups(6), Uncounted(caller), SECRET, chosen, cache)

    with judging() as judge:
        chosen = asking(settings, judge.url, judge_model=PRICED, judge_concurrency=1)
        cache = MemoryCache()
        asyncio.run(run(chosen, cache))
        whole = cache.spent
        assert whole > 0
        judge.reset()
        found = asyncio.run(run(chosen.model_copy(update={"judge_budget_usd": 0.6 * whole}), MemoryCache()))
        assert {type(outcome) for outcome in found.values()} == {ScoredGroup, PendingGroup} and requests(judge) == 6


class Changed:
    """Asks a judge and changes what its server says of it; ``asked`` counts the requests."""

    def __init__(self, judge: JudgeClient, change: Callable[[int, JudgeReply], JudgeReply]) -> None:
        self.judge, self.change, self.asked = judge, change, 0

    async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, Any]) -> JudgeReply:
        reply = await self.judge.ask(messages, schema)
        self.asked += 1
        return self.change(self.asked, reply)


def judge_changed(
    settings: Settings, some: Sequence[RenderedGroup], change: Callable[[int, JudgeReply], JudgeReply]
) -> tuple[list[GroupOutcome], int]:
    """Outcomes and number of requests of a judge whose replies are changed; one request at a time."""

    async def run(chosen: Settings) -> tuple[list[GroupOutcome], int]:
        async with JudgeClient(chosen) as caller:
            asked = Changed(caller, change)
            found = await judge_groups(some, asked, SECRET, chosen, MemoryCache())
            return list(found.values()), asked.asked

    with judging() as judge:
        return asyncio.run(run(asking(settings, judge.url, judge_concurrency=1)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.55, 0.7, 1.0, 1.6, None])
def test_a_count_of_another_tokenizer_or_none_is_no_fault(settings: Settings, share: float | None) -> None:
    def counted(_: int, reply: JudgeReply) -> JudgeReply:
        return replace(reply, read_tokens=None if share is None else int(share * (reply.prompt_tokens or 0) / 0.6))

    (found,), asked = judge_changed(settings, [group()], counted)
    assert isinstance(found, ScoredGroup) and asked == 2


@pytest.mark.parametrize("context", [512, 600, 1024])
def test_a_prompt_that_the_server_cut_gives_no_score_and_is_asked_once_an_order(settings: Settings, context: int) -> None:
    long = [replace(one, episodes=tuple(replace(e, text=e.text * 60) for e in one.episodes)) for one in groups(8)]
    found, asked = judge_changed(settings, long, lambda _, reply: replace(reply, read_tokens=min(context, reply.prompt_tokens or 0)))
    unscored = [outcome for outcome in found if isinstance(outcome, UnscorableGroup)]
    assert unscored and len(unscored) <= 4 and asked <= 8, "a server that cuts every prompt is soon asked no more"
    assert all(f"read {context} of about" in outcome.reason and "JUDGE_REQUEST_TOKENS" in outcome.reason for outcome in unscored)
    assert {type(outcome) for outcome in found} == {UnscorableGroup, PendingGroup}


def test_a_smaller_cut_shows_where_prompts_of_other_sizes_have_the_same_count(settings: Settings) -> None:
    sizes = [group("2025-11-15T10:00", 5), group("2025-11-15T11:00", 14), group("2025-11-15T12:00", 5)]
    found, _ = judge_changed(settings, sizes, lambda _, reply: replace(reply, read_tokens=900))
    assert [type(outcome) for outcome in found] == [ScoredGroup, UnscorableGroup, ScoredGroup]


def test_a_judge_that_only_thinks_is_given_up_after_two_tries(settings: Settings) -> None:
    found, asked = judge_changed(settings, [group()], lambda _, reply: replace(reply, text="<think>Let me see", fault=""))
    assert isinstance(found[0], UnscorableGroup) and "thinking" in found[0].reason and asked <= 3
    found, asked = judge_changed(settings, groups(20), lambda _, reply: replace(reply, text="", fault=f"{LASTING}cut (reasoning)."))
    assert asked <= 16 and isinstance(found[-1], PendingGroup) and "reasoning" in found[-1].reason
    found, asked = judge_changed(settings, [group()], lambda asked, reply: reply if asked > 1 else replace(reply, text="<think>Hm"))
    assert isinstance(found[0], ScoredGroup) and asked == 3, "one that thinks too long by chance is asked again"


def test_a_group_beyond_one_request_is_judged_in_parts_on_one_scale(settings: Settings) -> None:
    large = group(agents=20)
    with judging() as judge:
        (found,) = judged(judge_all(asking(settings, judge.url, judge_group_size=8), [large], MemoryCache()))
        assert requests(judge) > 4
    ranked = sorted(found.agreement.scores, key=lambda agent: found.agreement.scores[agent])
    assert ranked == [f"a{n}" for n in range(20)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing-id", "duplicate-id", "unknown-id", "out-of-range", "nan", "boolean", "no-explanation", "empty"])
def test_an_unusable_answer_is_asked_for_anew_and_then_the_group_is_set_aside(settings: Settings, fault: str) -> None:
    cache = MemoryCache()
    with judging(ScriptedJudge(faults={fault: 1.0})) as judge:
        impatient = asking(settings, judge.url, judge_orders=1, judge_tries=5)
        (found,) = judge_all(impatient, [group()], cache).values()
        assert requests(judge) == 5
        (again,) = judge_all(impatient, [group()], cache).values()
        assert requests(judge) == 5
    assert isinstance(found, UnscorableGroup) and isinstance(again, UnscorableGroup)
    assert [entry["attempt"] for entry in found.transcript] == [0, 1, 2, 3, 4]
    assert all(entry["faults"] for entry in found.transcript) and found.reason == again.reason
    added = [len(entry["messages"]) for entry in found.transcript]
    assert added == [2, 1, 1, 1, 1]
    assert len({entry["messages"][-1]["content"] for entry in found.transcript}) == 5


def test_a_judge_that_says_the_same_of_the_same_bytes_is_asked_something_else_after_a_faulty_answer(settings: Settings) -> None:
    class Stubborn:
        """Asks a judge as if at temperature 0: the first question of each order has no answer, however often it is asked."""

        def __init__(self, judge: JudgeClient) -> None:
            self.judge = judge
            self.seen: list[str] = []

        async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, Any]) -> JudgeReply:
            self.seen.append(messages[1]["content"])
            reply = await self.judge.ask(messages, schema)
            stuck = self.seen[:2]
            return replace(reply, text="I cannot say.") if messages[1]["content"] in stuck else reply

    async def run(url: str) -> tuple[GroupOutcome, list[str]]:
        chosen = asking(settings, url, judge_concurrency=1)
        async with JudgeClient(chosen) as caller:
            asked = Stubborn(caller)
            (found,) = (await judge_groups([group()], asked, SECRET, chosen, MemoryCache())).values()
        return found, asked.seen

    with judging(ScriptedJudge(position_bias=0.2)) as judge:
        found, seen = asyncio.run(run(judge.url))
    assert isinstance(found, ScoredGroup) and len(seen) == len(set(seen)) == 4
    for order, answered in zip(found.orders, seen[2:], strict=True):
        earned = re.findall(r"made (\d+) dollars", answered)
        assert [order.places[f"a{int(usd) // 100}"] for usd in earned] == [0, 0.25, 0.5, 0.75, 1], (
            "places of the question that was answered"
        )


@pytest.mark.slow
def test_faults_that_come_and_go_lose_no_group(settings: Settings) -> None:
    with judging(ScriptedJudge(faults=dict.fromkeys(CONTENT_FAULTS, 0.05))) as judge:
        found = judged(judge_all(asking(settings, judge.url), groups(40), MemoryCache()))
        assert requests(judge) > 80
    assert all(outcome.agreement.scores.keys() == {f"a{n}" for n in range(5)} for outcome in found)


def test_a_judge_that_talks_nonsense_is_not_asked_about_every_group(settings: Settings) -> None:
    cache = MemoryCache()
    with judging(ScriptedJudge(faults={"empty": 1.0})) as judge:
        chosen = asking(settings, judge.url, judge_orders=1, judge_tries=4, judge_concurrency=2)
        found = judge_all(chosen, groups(30), cache)
        assert 12 <= requests(judge) <= 16
        assert [outcome.reason for outcome in found.values() if isinstance(outcome, PendingGroup) and "could not be used" in outcome.reason]
        few = judge_all(chosen, groups(3), MemoryCache())
        judge.reset(faults={"empty": 0.0})
        judged(judge_all(chosen, [outcome.group for outcome in found.values() if isinstance(outcome, PendingGroup)], cache))
    assert {type(outcome) for outcome in few.values()} == {UnscorableGroup}, "a few groups are given up one by one"


def test_a_judge_that_is_down_leaves_groups_waiting_and_those_of_the_cache_are_judged(settings: Settings) -> None:
    cache = MemoryCache()
    with judging() as judge:
        judged(judge_all(asking(settings, judge.url), groups(1), cache))
        judge.reset(faults={"unavailable": 1.0})
        found = judge_all(asking(settings, judge.url, judge_timeout_seconds=0.1), groups(2), cache)
    first, second = found.values()
    assert isinstance(first, ScoredGroup) and isinstance(second, PendingGroup) and "openai/scripted" in second.reason


def test_a_judge_that_refuses_everybody_ends_the_run(settings: Settings) -> None:
    with judging(ScriptedJudge(faults={"bad-key": 1.0})) as judge, pytest.raises(JudgeRefused, match="OPENAI_API_KEY"):
        judge_all(asking(settings, judge.url), groups(3), MemoryCache())


def test_a_request_that_alone_is_refused_sets_its_group_aside_and_no_other(settings: Settings) -> None:
    cache = MemoryCache()
    with judging(ScriptedJudge(faults={"bad-request": 0.5})) as judge:
        # One at a time: that those which are answered come between those which are refused is not left to chance.
        found = judge_all(asking(settings, judge.url, judge_orders=1, judge_concurrency=1), groups(12), cache)
    kinds = {type(outcome) for outcome in found.values()}
    assert kinds == {ScoredGroup, UnscorableGroup}
    for outcome in found.values():
        if isinstance(outcome, UnscorableGroup):
            assert "JUDGE_REQUEST_TOKENS" in outcome.reason
            assert outcome.group.window in outcome.transcript[0]["messages"][1]["content"], "the request that was refused"


@pytest.mark.parametrize("others", ["none", "cached"])
def test_a_request_that_is_refused_sets_its_group_aside_where_nobody_else_is_asked(settings: Settings, others: str) -> None:
    cache = MemoryCache()
    with judging() as judge:
        chosen = asking(settings, judge.url)
        kept = judged(judge_all(chosen, groups(2), cache)) if others == "cached" else []
        judge.reset(faults={"bad-request": 1.0})
        found = judge_all(chosen, [*(one.group for one in kept), group("2025-11-20T10:00")], cache)
        assert requests(judge) == 2
    assert [type(outcome) for outcome in found.values()] == [*(ScoredGroup for _ in kept), UnscorableGroup]


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_judge_that_refuses_every_group_sets_a_few_aside_and_lets_the_others_wait(settings: Settings, at_once: int) -> None:
    with judging(ScriptedJudge(faults={"bad-request": 1.0})) as judge:
        found = list(judge_all(asking(settings, judge.url, judge_concurrency=at_once), groups(30), MemoryCache()).values())
        assert requests(judge) < 30
    assert 1 <= sum(isinstance(outcome, UnscorableGroup) for outcome in found) <= 3
    waiting = [outcome for outcome in found if isinstance(outcome, PendingGroup)]
    assert len(waiting) >= 27 and all("JUDGE_REQUEST_TOKENS" in outcome.reason for outcome in waiting)


@pytest.mark.slow
def test_requests_in_flight_are_bounded(settings: Settings) -> None:
    with judging(ScriptedJudge(latency_s=0.2)) as judge:
        judged(judge_all(asking(settings, judge.url, judge_concurrency=3), groups(6), MemoryCache()))
        assert judge.stats()["mostInFlight"] == 3


PARTS = (Part(0, 30), Part(30, 60))


def group_by_part(agents: int = 5) -> RenderedGroup:
    """As ``group``, in two parts: the agent a<n> earned 100 * n dollars in the first and lost as much in the second; the last has one."""
    whole, episodes = group(agents=agents), []
    for n, one in enumerate(whole.episodes):
        acted = [ActedPart(place, place + 1, place + 1, (1 - 2 * place) * 10.0 * n) for place in range(1 if n == agents - 1 else 2)]
        episodes.append(replace(one, acted=tuple(acted)))
    return replace(whole, episodes=tuple(episodes), parts=PARTS, input_version="by part")


@pytest.mark.parametrize("agents", [5, 20], ids=["one request", "sub-groups"])
def test_marks_of_parts_come_in_one_request_and_their_mean_is_the_score(settings: Settings, agents: int) -> None:
    with judging() as judge:
        asked = asking(settings, judge.url)
        found = judge_all(asked, [group_by_part(agents)], MemoryCache())["2025-11-15T10:00"]
        assert judge.stats()["requests"] == (2 if agents == 5 else judge.stats()["requests"])
    assert isinstance(found, ScoredGroup)
    scored = judged_scores(found, asked, "v")
    by_agent = {agent: [part for part in scored.parts if part.agent_id == agent] for agent in (f"a{n}" for n in range(agents))}
    assert {len(own) for own in by_agent.values()} == {1, 2} and len(by_agent[f"a{agents - 1}"]) == 1
    for score in scored.scores:
        own = [part.score for part in by_agent[score.agent_id]]
        assert sum(own) / len(own) == pytest.approx(score.score, abs=0.02 if agents > 5 else 1e-6)
    first, second = by_agent[f"a{agents - 2}"]
    assert first.advantage > 0 > second.advantage


def test_an_answer_with_a_missing_mark_is_asked_again_and_a_hopeless_judge_scores_nothing(settings: Settings) -> None:
    with judging(ScriptedJudge(few_marks=0.7, seed=1)) as judge:
        mended = judge_all(asking(settings, judge.url), [group_by_part()], MemoryCache())["2025-11-15T10:00"]
        assert judge.stats()["requests"] > 2
        judge.reset(few_marks=1.0)
        hopeless = judge_all(asking(settings, judge.url), [group_by_part()], MemoryCache())["2025-11-15T10:00"]
    assert isinstance(mended, ScoredGroup) and any("holds 1 marks, not 2" in fault for one in mended.answers for fault in one.faults)
    assert isinstance(hopeless, UnscorableGroup) and "holds 1 marks, not 2" in hopeless.reason


def test_by_the_hour_nothing_of_parts_is_asked() -> None:
    settings = Settings(_env_file=None, credit="hour")
    (request,) = plan_requests(group(), "openai/scripted", 0, SECRET, settings)
    assert request.messages[0]["content"] == system_prompt() and "part" not in request.messages[1]["content"]
    assert request.schema["properties"]["scores"]["items"]["required"] == ["id", "explanation", "score"]
    assert judge_rules(settings.model_copy(update={"judge_model": "x/y"})).startswith("x/y, rubric 1, 2 to 4 orders, form 2,")
