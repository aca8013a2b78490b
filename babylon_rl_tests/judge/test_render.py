"""What a judge is shown of an hour: the market, what agents saw, said and did, within a budget, and no name of any agent."""

import json
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given

from babylon_rl.episodes import reading
from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.consensus import MIN_SUBGROUP
from babylon_rl.judge.leakage import LeakContext, find_leaks
from babylon_rl.judge.plan import REQUEST_TOKENS
from babylon_rl.judge.prompt.render import render_groups, request_tokens
from babylon_rl.judge.prompt.request import RenderedGroup, plan_requests
from babylon_rl.judge.prompt.templates import question_names
from babylon_rl.llm.tokens import token_counter
from babylon_rl.market.outcomes import read_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl_tests.faulty_rows import WINDOWS, Row, copy_in, games
from babylon_rl_tests.judge.prompt_reader import read_request
from babylon_rl_tests.judge.rendered_groups import SECRET
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.rows import START, WINDOW, insert, make_call, make_log, make_step, make_trajectory

MODEL = "openai/gpt-4o-mini"


def act(number: int, kind: str = "BUY_SHARES", *, success: bool = True, pnl: float = 0.0, calls: Any = (), **action: Any) -> dict[str, Any]:
    return make_step(number, pnl=pnl, calls=calls) | {"action": {"actionType": kind, "parameters": {}, "success": success} | action}


def shown(connection: Connection, settings: Settings, **more: Any) -> RenderedGroup:
    return render_groups(connection, read_windows(connection, [WINDOW], settings), settings, **more)[WINDOW]


def text_of(group: RenderedGroup, agent: str = "agent-1") -> str:
    return next(episode.text for episode in group.episodes if episode.agent_id == agent)


def fill_market(connection: Connection, knowledge: dict[str, Any] | None = None) -> None:
    organization = {"id": "open-lie", "name": "Open LIE", "description": "", "type": "company", "initialPrice": 100.0, "updatedAt": START}
    prices = [
        {"id": f"p{minute}", "organizationId": "open-lie", "price": price, "change": 0, "changePercent": 0,
         "timestamp": START + timedelta(minutes=minute)}
        for minute, price in ((1, 100.0), (50, 110.0))
    ]  # fmt: skip
    question = {
        "id": "241774855181560797", "questionNumber": 7, "text": "Will it rain?", "scenarioId": 1, "outcome": True, "rank": 1,
        "createdDate": START - timedelta(hours=1), "resolutionDate": START + timedelta(days=3), "updatedAt": START,
    }  # fmt: skip
    events = [
        {"id": f"e{number}", "eventType": "leak", "description": description, "actors": [],
         "relatedQuestion": related, "visibility": "public", "timestamp": START + timedelta(minutes=number)}
        for number, (description, related) in enumerate((("Wet: Will it rain?", 7), ("Wet: Will it rain?", 7), ("Open LIE lies", None)))
    ]  # fmt: skip
    insert(connection, "Organization", [organization])
    insert(connection, "StockPrice", prices)
    insert(connection, "Question", [question])
    insert(connection, "WorldEvent", events)


def test_the_context_tells_the_market_once_and_marks_what_was_hidden(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    known = json.dumps({"gameKnowledge": {"trueProbabilities": {"241774855181560797": 0.8342}}})
    insert(connection, "trajectories", [make_trajectory(metadataJson=known), make_trajectory("t2", "agent-2", metadataJson=known)])
    assert shown(connection, settings).context == (
        f"The market as a whole in the hour {WINDOW}: mean change 10 %, volatility 0 %.",
        f"Stocks over the hour {WINDOW}, dollars at its start and its end: Open LIE 100 110 +10.00% BULLISH.",
        'In the hour Q7 "Will it rain?" went from 0.5 to 0.5 for YES, officially UNRESOLVED.',
        "News of this hour that concerned Q7: Wet: Q7.",
        "News of this hour that concerned Open LIE: Open LIE lies.",
        "Hidden from the agents: the answers that the engine decided when it made the questions: Q7 YES.",
        "Hidden from the agents: the game knew by trueProbabilities that 241774855181560797 is 0.8342, says its record.",
    )


def test_hidden_answers_stay_hidden_where_a_setting_says_so(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    known = json.dumps({"gameKnowledge": {"trueProbabilities": {"241774855181560797": 0.8342}}})
    insert(connection, "trajectories", [make_trajectory(metadataJson=known)])
    silent = settings.model_copy(update={"judge_private_fields": "hidden_answers,game_knowledge"})
    context = shown(connection, silent).context
    assert len(context) == 5 and not any("Hidden" in sentence for sentence in context)


def test_every_sentence_of_the_context_would_be_found_in_a_training_text(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        groups = render_groups(connection, read_windows(connection, ["2025-10-29T04:00"], settings), settings)
    sentences = groups["2025-10-29T04:00"].context
    assert len(sentences) > 30
    for sentence in sentences:
        assert find_leaks([{"role": "user", "content": f"News: {sentence.upper()} Go."}], "", LeakContext()), sentence


def test_a_step_says_what_was_seen_said_and_done(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    call = make_call(
        systemPrompt="You trade.", userPrompt='Q: Will it rain?\n[{"id":"241774855181560797","yesShares":600.25},{"id":"x","a":null}]',
        response="I buy.", reasoning="clouds",
    )  # fmt: skip
    first = act(
        0, pnl=5.0, calls=[call], parameters={"marketId": "241774855181560797", "size": 12.5, "postId": "241774855181560000", "pnl": 5.0},
        result={"executed": True, "size": 12.5}, reasoning="rain is likely",
    )  # fmt: skip
    failed = act(1, pnl=5.0, success=False, parameters={"ticker": "X"}, error="no money")
    rest = [act(number, "HOLD", pnl=5.0, calls=[make_call(response="HOLD")]) for number in range(2, 5)]
    insert(connection, "trajectories", [make_trajectory(steps=[first, failed, *rest])])
    assert text_of(shown(connection, settings)) == (
        "1. (balance 1000, P&L 5, 1 open) saw You trade. | Q: Q7 | id=Q7 yesShares=600.25 | id=x\n"
        " said I buy.\n said (why) rain is likely\n said (why) clouds\n did BUY_SHARES marketId=Q7 size=12.5 -> executed=true\n"
        "2. did BUY_SHARES FAILED ticker=X -> error=no money\n"
        "3. saw as before, and What now?\n did HOLD\n4. saw as before\n did HOLD\n5. saw as before\n did HOLD"
    )


def test_calls_and_reasoning_come_from_the_log_where_steps_hold_none(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory(steps=[make_step(number) for number in range(5)])])
    insert(connection, "llm_call_logs", [make_log("t1", step=2, userPrompt="Logged?", response="Logged!", reasoning="logged why")])
    text = text_of(shown(connection, settings))
    assert "3. saw You trade. | Logged?\n said Logged!\n said (why) logged why\n did TRADING_DECISION" in text


def test_trajectories_of_an_episode_follow_one_another(connection: Connection, settings: Settings) -> None:
    steps = [act(0, parameters={"n": 1}), make_step(1) | {"action": {"actionType": "pending", "parameters": {}, "success": False}}]
    late = [act(number, parameters={"n": 2 + number}) for number in range(4)]
    insert(connection, "trajectories", [make_trajectory("t2", steps=late, minute=9), make_trajectory("t1", steps=steps, minute=3)])
    lines = text_of(shown(connection, settings)).splitlines()
    assert [line.split("n=")[1] for line in lines] == list("12345") and lines[4].startswith("5. ")


def test_what_several_were_shown_is_said_once(connection: Connection, settings: Settings) -> None:
    prompt = "The market is open and everyone is here today."
    steps = [make_step(number, calls=[make_call(userPrompt=f"{prompt}\nBalance {number}")]) for number in range(5)]
    insert(connection, "trajectories", [make_trajectory(steps=steps), make_trajectory("t2", "agent-2", steps=steps)])
    group = shown(connection, settings)
    assert group.common == f"[1] {prompt}"
    assert all(episode.text.count("[1]") == 1 and prompt not in episode.text for episode in group.episodes)


def test_names_and_ids_of_agents_are_replaced(connection: Connection, settings: Settings) -> None:
    rows = []
    for number in (1, 2):
        call = make_call(
            systemPrompt=f"You are Alice {number}.", userPrompt="Alice 1 and ALICE 2 (agent-2, alice_1) trade. agent-21 is nobody."
        )
        steps = [act(step, calls=[call], parameters={"to": "agent-1", "agentId": f"agent-{number}"}) for step in range(5)]
        rows.append(make_trajectory(f"t{number}", f"agent-{number}", steps=steps))
    insert(connection, "trajectories", rows)
    for number in (1, 2):
        connection.execute(
            """UPDATE "User" SET "displayName" = %s, username = %s WHERE id = %s""",
            (f"Alice {number}", f"alice_{number}", f"agent-{number}"),
        )
    group = shown(connection, settings)
    everything = group.common + "".join(episode.text for episode in group.episodes)
    assert (
        "alice" not in everything.casefold() and "agent-1" not in everything and "agent-2 " not in everything and "agent-21" in everything
    )
    assert "You are [this agent]." in everything and "to=[this agent]" in text_of(group, "agent-1")
    assert "to=[another agent] agentId=[this agent]" in text_of(group, "agent-2")


def test_agents_left_out_and_short_episodes_are_not_shown(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [
        make_trajectory("t1", "agent-1"), make_trajectory("t2", "agent-2"), make_trajectory("t3", "agent-3", steps=[make_step(0)]),
    ])  # fmt: skip
    readings = read_windows(connection, [WINDOW], settings)
    group = render_groups(connection, readings, settings, agents={WINDOW: ["agent-1", "agent-3"]})[WINDOW]
    assert [episode.agent_id for episode in group.episodes] == ["agent-1"]
    assert render_groups(connection, readings, settings, agents={WINDOW: ["agent-3"]}) == {}


def test_the_version_is_of_what_is_shown(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory("t1", "agent-1"), make_trajectory("t2", "agent-2")])
    first = shown(connection, settings)
    assert shown(connection, settings) == first
    connection.execute("""UPDATE trajectories SET "usedInTraining" = TRUE, "aiJudgeReward" = 0.5""")
    assert shown(connection, settings) == first
    connection.execute("""UPDATE trajectories SET "finalPnL" = 12 WHERE "trajectoryId" = 't1'""")
    changed = shown(connection, settings)
    assert changed.input_version != first.input_version and changed.episodes[0].pnl == 12


def test_private_fields_do_not_leave(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    call = make_call(systemPrompt="SYS", userPrompt="USR", response="RSP", reasoning="WHY")
    content = {"content": "PST", "wallet": "WLT", "side": "YES"}
    steps = [act(number, "CREATE_POST", pnl=3.5, calls=[call], parameters=content, result={"x": "R-S"}) for number in range(5)]
    insert(connection, "trajectories", [make_trajectory(steps=steps, finalPnL=77.0)])
    words = {
        "system_prompt": "SYS", "user_prompt": "USR", "response": "RSP", "reasoning": "WHY", "posts": "PST", "parameters.wallet": "WLT",
        "parameters": "side=YES", "result": "R-S", "state": "balance", "market": "Stocks", "news": "News", "hidden_answers": "Hidden",
    }  # fmt: skip
    whole = shown(connection, settings)
    assert all(word in "\n".join([*whole.context, whole.common, text_of(whole)]) for word in words.values())
    for name, word in words.items():
        group = shown(connection, settings.model_copy(update={"judge_private_fields": name}))
        said = "\n".join([*group.context, group.common, text_of(group)])
        assert [other for other in words.values() if other not in said] in ([word], [word, "WLT"], ["PST", "WLT", word], ["RSP", word]), (
            name
        )
    hashed = shown(connection, settings.model_copy(update={"judge_private_fields": "posts=hash, pnl"}), secret=b"k")
    assert "PST" not in text_of(hashed) and text_of(hashed).count("content=#") == 5 and hashed.episodes[0].pnl is None
    again = shown(connection, settings.model_copy(update={"judge_private_fields": "posts=hash, pnl"}), secret=b"other")
    assert text_of(again) != text_of(hashed)
    asked = plan_requests(hashed, MODEL, 0, SECRET, settings)
    assert "From the hour's start" not in asked[0].messages[1]["content"]


STEPS = 600


def make_long(connection: Connection, agents: int) -> None:
    rows = []
    for agent in range(agents):
        steps = [
            act(step, "HOLD" if step % 7 else "BUY_SHARES", calls=[make_call(response=f"{agent} {step} " + "because of this " * 30)])
            for step in range(STEPS)
        ]
        rows.append(make_trajectory(f"t{agent}", f"agent-{agent}", steps=steps))
    insert(connection, "trajectories", rows)


BUSY = 40


def make_busy(connection: Connection, agents: int) -> None:
    """Agents each of whose steps says another thing; every fourth is a trade with a long reason."""
    rows = []
    for agent in range(agents):
        steps = [
            act(
                step, "CREATE_POST" if step % 4 else "BUY_SHARES", parameters={"n": step},
                reasoning="because of this " * (5 if step % 4 else 30),
                calls=[make_call(userPrompt=f"{agent} {step} " + "the feed is long " * 20, response=f"{agent} {step}")],
            )
            for step in range(BUSY)
        ]  # fmt: skip
        rows.append(make_trajectory(f"t{agent}", f"agent-{agent}", steps=steps))
    insert(connection, "trajectories", rows)


@pytest.mark.long
@pytest.mark.parametrize("budget", [2_000, 5_000, 12_000])
def test_a_request_stays_within_its_budget_and_says_what_it_leaves_out(connection: Connection, settings: Settings, budget: int) -> None:
    make_long(connection, 7)
    fill_market(connection)
    tight = settings.model_copy(update={"judge_request_tokens": budget, "judge_model": MODEL})
    group = shown(connection, tight)
    requests = plan_requests(group, MODEL, 0, SECRET, tight)
    assert all(request.tokens <= budget for request in requests) and set().union(*(request.ids.values() for request in requests)) == {
        f"agent-{agent}" for agent in range(7)
    }
    assert all(len(request.ids) <= max(MIN_SUBGROUP, min(group.max_episodes, tight.judge_group_size)) for request in requests)
    assert group.left_out > 0 and all("left out]" in episode.text for episode in group.episodes)
    for episode in group.episodes:
        assert episode.text.startswith("1. ") and f"\n{STEPS}. " in episode.text


def test_no_step_is_shortened_while_the_models_context_has_room(connection: Connection, settings: Settings) -> None:
    make_busy(connection, 10)
    known = settings.model_copy(update={"judge_model": MODEL})
    group = shown(connection, known)
    (request,) = plan_requests(group, MODEL, 0, SECRET, known)
    assert REQUEST_TOKENS < request.tokens < request_tokens(known) and group.shortened == group.left_out == 0


def test_a_group_is_asked_in_parts_before_any_step_is_shortened(connection: Connection, settings: Settings) -> None:
    make_busy(connection, 10)
    unknown = settings.model_copy(update={"judge_model": "x/nobody-knows"})
    group = shown(connection, unknown)
    requests = plan_requests(group, unknown.judge_model, 0, SECRET, unknown)
    assert len(requests) > 1 and group.shortened == 0
    assert all(request.tokens <= REQUEST_TOKENS for request in requests)


def test_where_not_even_four_episodes_fit_trades_lose_nothing_before_all_else_does(connection: Connection, settings: Settings) -> None:
    make_busy(connection, 10)
    tight = settings.model_copy(update={"judge_model": MODEL, "judge_request_tokens": 14_000})
    group = shown(connection, tight)
    assert all(request.tokens <= 14_000 for request in plan_requests(group, MODEL, 0, SECRET, tight)) and group.steps == 10 * BUSY
    assert group.shortened > 0 == group.decisions_shortened, "there is room for all trades"
    for episode in group.episodes:
        assert episode.text.count("said (why) because of this") >= BUSY // 4 and "[what it saw left out]" in episode.text


@pytest.mark.parametrize(
    ("model", "given", "most"),
    [
        ("openai/gpt-4o-mini", None, 96_000), ("openai/gpt-4o-mini", 20_000, 20_000), ("openai/gpt-4o-mini", 500_000, 96_000),
        ("openai/gpt-4", None, 6_144), ("x/nobody-knows", None, 32_000), ("x/nobody-knows", 500_000, 500_000),
    ],
)  # fmt: skip
def test_a_request_has_room_for_what_the_model_takes_and_the_setting_bounds_it(
    settings: Settings, model: str, given: int | None, most: int
) -> None:
    assert request_tokens(settings.model_copy(update={"judge_model": model, "judge_request_tokens": given})) == most


def test_a_group_above_the_setting_is_asked_in_parts(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory(f"t{agent}", f"agent-{agent}") for agent in range(9)])
    small = settings.model_copy(update={"judge_group_size": 6})
    requests = plan_requests(shown(connection, small), MODEL, 0, SECRET, small)
    assert [len(request.ids) <= 6 for request in requests] == [True] * len(requests) and len(requests) > 1


@pytest.mark.long
def test_the_recorded_game_names_no_agent_and_keeps_its_budget(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        windows = windows_with_rows(connection, "2025-10-29T00:00", "2025-11-01T00:00")
        readings = {window: reading for window, reading in read_windows(connection, windows, settings).items() if reading.ready}
        names = connection.execute("""SELECT id, "displayName", username FROM "User" WHERE "isAgent" """).fetchall()
        groups = render_groups(connection, readings, settings)
    assert len(groups) == 7 and names and [group.shortened for group in groups.values()] == [0] * 7
    for window, group in groups.items():
        for request in plan_requests(group, MODEL, 0, SECRET, settings):
            text = request.messages[1]["content"]
            assert not [name for row in names for name in row if name and name in text], window
            assert request.tokens <= request_tokens(settings) and set(request.ids.values()) <= {
                episode.agent_id for episode in readings[window].usable_episodes
            }


def test_questions_have_short_names(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    assert question_names(read_outcomes(connection, WINDOW, settings)) == {"241774855181560797": "Q7", "Will it rain?": "Q7"}


def test_tokens_are_counted_by_the_models_tokenizer_where_it_is_known() -> None:
    known, older, other = (
        token_counter("openai/gpt-4o-mini"),
        token_counter("openai/gpt-4-turbo"),
        token_counter("anthropic/claude-sonnet-4"),
    )
    text = "The market as a whole went up by 1.5 %. \ud800 <|endoftext|>"
    assert 0 < known(text) < other(text) and older("hello world") == known("hello world") == 2
    assert (known("ὁμοίως"), older("ὁμοίως")) == (5, 8), "by o200k_base and cl100k_base"


@pytest.mark.long
def test_an_hours_texts_are_not_held_while_it_is_rendered_and_its_requests_are_planned(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", 4)
    few, many, steps, words = 8, 40, 10, 200
    rows = []
    for agent in range(many):
        prompts = [" ".join(f"{agent}.{step}.{word}" for word in range(words)) for step in range(steps)]
        own = [make_step(step, calls=[make_call(userPrompt=prompt)]) for step, prompt in enumerate(prompts)]
        rows.append(make_trajectory(f"t{agent}", f"agent-{agent:02}", steps=own))
    insert(connection, "trajectories", rows)
    short = settings.model_copy(update={"judge_request_tokens": 4_000})
    readings = read_windows(connection, [WINDOW], short)
    shown(connection, short, agents={WINDOW: ["agent-00"]})  # loads the tokenizer
    peaks = []
    for agents in (few, many):
        tracemalloc.start()
        named = {WINDOW: [f"agent-{agent:02}" for agent in range(agents)]}
        group = render_groups(connection, readings, short, agents=named)[WINDOW]
        planned = [plan_requests(group, MODEL, order, SECRET, short) for order in range(8)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(group.episodes) == agents and len(planned[0]) > agents / 8
    raw = steps * words * len("10.1.100 ")
    assert peaks[1] - peaks[0] < 2 * (many - few) * raw  # caches of texts hold some


Game = tuple[list[Row], list[Row]]


@pytest.mark.long
@repeatable(40)
@given(game=games())
def test_whatever_was_recorded_a_request_can_be_read(connection: Connection, game: Game) -> None:
    settings = Settings.model_construct(**{name: field.default for name, field in Settings.model_fields.items()})
    lenient = settings.model_copy(update={"min_actions_per_trajectory": 1})
    connection.execute("SAVEPOINT example")
    try:
        for table, rows in zip(("trajectories", "llm_call_logs"), game, strict=True):
            copy_in(connection, table, rows)
        readings = read_windows(connection, WINDOWS, lenient)
        groups = render_groups(connection, readings, lenient)
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT example")
    assert set(groups) == {window for window, reading in readings.items() if reading.usable_episodes}
    for window, group in groups.items():
        usable = [episode.agent_id for episode in readings[window].usable_episodes]
        assert [episode.agent_id for episode in group.episodes] == usable
        for request in plan_requests(group, MODEL, 0, SECRET, lenient):
            assert list(read_request(request.messages[1]["content"]).blocks) == list(request.ids)
