"""Hindsight over hours: written once, brought up to date by a late answer, safe for two at once; leaks in rows and logs."""

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from babylon_rl.episodes.reading import read_windows, sync_windows
from babylon_rl.judge.hindsight import hour_secrets, sync_hindsight
from babylon_rl.judge.leakage import find_leaks
from babylon_rl.judge.prompt import templates
from babylon_rl.judge.prompt.templates import fill_template
from babylon_rl.market.outcomes import read_outcomes
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.hindsight import HourHindsight, StoredAction, StoredHour, StoredLeak, agent_correctness, stored_leaks
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl_tests.expected import SAMPLES
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_log, make_step, make_trajectory

NOW = datetime(2026, 1, 1)
SECRET = fill_template(templates.PREDICTION, question="Will it rain?", market="Q1", start=0.5, end=0.9, answer="YES")


def trade(
    number: int, action: str = "TRADING_DECISION", *, success: bool = True, prompt: str = "What now?", **parameters: Any
) -> dict[str, Any]:
    step = make_step(number, calls=[make_call(userPrompt=prompt)])
    return step | {"action": {"actionType": action, "parameters": parameters, "success": success}}


def fill_market(connection: Connection) -> None:
    """OpenLIE rises 10 %; question q1 is open."""
    organization = {"id": "openlie", "name": "OpenLIE", "description": "", "type": "company", "initialPrice": 100.0, "updatedAt": START}
    prices = [
        {"id": f"p{minute}", "organizationId": "openlie", "price": price, "change": 0, "changePercent": 0,
         "timestamp": START + timedelta(minutes=minute)}
        for minute, price in ((1, 100.0), (50, 110.0))
    ]  # fmt: skip
    question = {
        "id": "q1", "questionNumber": 1, "text": "Will it rain?", "scenarioId": 1, "outcome": True, "rank": 1,
        "createdDate": START - timedelta(hours=1), "resolutionDate": START + timedelta(days=3), "updatedAt": START,
    }  # fmt: skip
    insert(connection, "Organization", [organization])
    insert(connection, "StockPrice", prices)
    insert(connection, "Question", [question])


def synced(connection: Connection, settings: Settings) -> HourHindsight:
    sync_windows(connection, [WINDOW], settings, AFTER)
    return sync_hindsight(connection, [WINDOW], settings, AFTER)[WINDOW]


def rows(connection: Connection, table: str) -> list[Any]:
    return connection.execute(f"SELECT ctid::text, * FROM babylon_rl.{table} ORDER BY 2, 3, 4").fetchall()


def everything(connection: Connection) -> list[Any]:
    return [rows(connection, table) for table in ("hindsight", "action_outcomes", "leaks")]


def test_every_trade_with_a_target_gets_its_outcome(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    steps = [
        make_step(0) | {"action": {"actionType": "pending", "parameters": {}, "success": False}},
        trade(1, ticker="OpenLIE", side="long"), trade(2, "HOLD"), trade(3, marketId="q1", side="NO", success=False),
        trade(4, "SELL_SHARES", ticker="$BTC"), trade(5, method="a2a"),
    ]  # fmt: skip
    insert(connection, "trajectories", [make_trajectory("t1", steps=steps), make_trajectory("t2", steps=steps, isEvaluation=True)])
    found = synced(connection, settings)
    assert (found.actions, found.known, found.right, found.sequences, found.leaked) == (3, 1, 1, 5, 0)
    held = connection.execute(
        'SELECT "trajectoryId", "step", "executed", "kind", "target", "organizationId", "marketId", "side", "outcome", "changePercent", '
        '"correct" FROM babylon_rl.action_outcomes ORDER BY "step"'
    ).fetchall()
    assert held == [
        ("t1", 0, True, "stock", "OpenLIE", "openlie", None, "UP", None, pytest.approx(10.0), True),
        ("t1", 2, False, "prediction", "q1", None, "q1", "NO", None, None, None),
        ("t1", 3, True, "stock", "$BTC", None, None, "DOWN", None, None, None),
    ]
    (agent,) = agent_correctness(connection, [WINDOW])[WINDOW]
    assert (agent.agent_id, agent.actions, agent.known, agent.share) == ("agent-1", 3, 1, 1.0)


def test_a_late_official_answer_brings_actions_up_to_date(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    insert(connection, "trajectories", [make_trajectory(steps=[trade(0, marketId="q1", side="NO")])])
    before = synced(connection, settings)
    connection.execute("""UPDATE "Question" SET "resolvedOutcome" = TRUE, "updatedAt" = %s""", (START + timedelta(days=3),))
    after = sync_hindsight(connection, [WINDOW], settings, NOW)[WINDOW]
    assert (before.known, after.known, after.right, after.changed) == (0, 1, 0, True)
    assert after.data_version != before.data_version
    assert connection.execute('SELECT "outcome", "correct" FROM babylon_rl.action_outcomes').fetchall() == [("YES", False)]


def test_unchanged_content_is_not_written_again(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    insert(connection, "trajectories", [make_trajectory(steps=[trade(0, ticker="openlie", side="long", prompt=SECRET)])])
    first = synced(connection, settings)
    held = everything(connection)
    again = sync_hindsight(connection, [WINDOW], settings, NOW)[WINDOW]
    assert (first.changed, again.changed, again.data_version) == (True, False, first.data_version)
    assert everything(connection) == held


def test_hours_that_are_not_over_not_read_or_gone_have_none(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory(steps=[trade(0, ticker="OpenLIE", side="long", prompt=SECRET)])])
    assert sync_hindsight(connection, [WINDOW], settings, AFTER) == {}
    sync_windows(connection, [WINDOW], settings, AFTER)
    assert sync_hindsight(connection, [WINDOW], settings, START + timedelta(minutes=59)) == {}
    assert synced(connection, settings).leaked == 1
    connection.execute("DELETE FROM trajectories")
    sync_windows(connection, [WINDOW], settings, AFTER)
    assert sync_hindsight(connection, [WINDOW], settings, AFTER) == {}
    assert everything(connection) == [[], [], []]


def test_leaks_are_named_by_sequence_wherever_its_texts_were_recorded(connection: Connection, settings: Settings) -> None:
    embedded = make_trajectory("t1", steps=[trade(0), trade(1, prompt=f"News: {SECRET.upper()}")])
    silent = make_trajectory("t2", "agent-2", steps=[make_step(0)])
    served = [{"role": "system", "content": SECRET.replace(" ", "\n")}, {"role": "user", "content": "Go."}]
    insert(connection, "trajectories", [embedded, silent])
    insert(connection, "llm_call_logs", [make_log("t2", messagesJson=json.dumps(served))])
    found = synced(connection, settings)
    assert (found.sequences, found.leaked) == (3, 2)
    leaks = stored_leaks(connection, [WINDOW])
    assert [(leak.trajectory_id, leak.sequence, leak.call_id, leak.kind) for leak in leaks] == [
        ("t1", 1, "t1-call-1-0", "outcome"), ("t2", 0, "t2-call-0-0", "outcome"),
    ]  # fmt: skip
    assert leaks[0].detail.startswith("message 1 (user): HE QUESTION")
    assert leaks[1].detail.startswith("message 0 (system): he question")


def test_recorded_game_knowledge_is_a_leak_in_its_own_trajectory(connection: Connection, settings: Settings) -> None:
    knowledge = {"trueProbabilities": {"241774855181560797": 0.8342}, "actualOutcomes": {}}
    prompt = 'Believe me: {"241774855181560797": 0.8342}'
    known = make_trajectory("t1", steps=[trade(0, prompt=prompt)], metadataJson=json.dumps({"gameKnowledge": knowledge}))
    other = make_trajectory("t2", "agent-2", steps=[trade(0, prompt=prompt)], metadataJson='{"gameKnowledge": {"trueProbabilities": {}}}')
    broken = make_trajectory("t3", "agent-3", steps=[trade(0, prompt=prompt)], metadataJson='{"gameKnowledge": {"a": {"b": 1}')
    insert(connection, "trajectories", [known, other, broken])
    assert synced(connection, settings).leaked == 1
    assert [(leak.trajectory_id, leak.kind) for leak in stored_leaks(connection, [WINDOW])] == [("t1", "game_knowledge")]


def test_bare_knowledge_and_stated_answers_are_leaks_of_the_hour(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    knowledge = {"trueProbabilities": {"m1": 0.83421}, "futureOutcomes": ["Wet: Will it rain?", "The umbrella maker fails on Friday"]}
    prompts = {
        "t1": "The chance is 0.83421.", "t2": "Told: the umbrella maker fails on friday!",
        "t3": "The true answer to Q1 turns out to be YES.",
        "t4": "Wet: Will it rain? I think the answer to Q1 is YES.", "t5": "The true answer to Q1 turns out to be NO.",
    }  # fmt: skip
    known = json.dumps({"gameKnowledge": knowledge})
    rows = [make_trajectory(name, f"agent-{name}", steps=[trade(0, prompt=said)], metadataJson=known) for name, said in prompts.items()]
    insert(connection, "trajectories", rows)
    synced(connection, settings)
    assert {leak.trajectory_id: leak.kind for leak in stored_leaks(connection, [WINDOW])} == {
        "t1": "game_knowledge", "t2": "game_knowledge", "t3": "hidden_answer",
    }  # fmt: skip


def test_a_questions_own_row_is_a_leak_while_it_is_open(connection: Connection, settings: Settings) -> None:
    fill_market(connection)
    prompt = 'QUESTIONS: [{"questionNumber": 1, "text": "Will it rain?", "outcome": true}]'
    insert(connection, "trajectories", [make_trajectory(steps=[trade(0, prompt=prompt)])])
    assert synced(connection, settings).leaked == 1
    answered = START + timedelta(minutes=20)
    connection.execute("""UPDATE "Question" SET "resolvedOutcome" = TRUE, "updatedAt" = %s""", (answered,))
    assert synced(connection, settings).leaked == 0


def test_texts_that_postgres_cannot_hold_lose_nothing(connection: Connection, settings: Settings) -> None:
    odd = json.loads('"\\u0000 BTC"')
    steps = [trade(0, ticker=odd, side="long", prompt=f"{odd}{SECRET}")]
    steps[0]["llmCalls"][0]["callId"] = odd * 1000
    insert(
        connection, "trajectories", [make_trajectory(steps=json.dumps(steps)), make_trajectory("t2", steps=[trade(0, ticker="OpenLIE")])]
    )
    found = synced(connection, settings)
    assert (found.actions, found.leaked) == (2, 1)


@pytest.mark.slow
def test_two_at_once_write_it_once(copy_of: Callable[[str], Database], settings: Settings) -> None:
    database = copy_of("sample")
    windows: list[str] = []
    with database.connect(autocommit=True) as connection:
        windows += windows_with_rows(connection, "2025-10-29T00:00", "2025-10-31T00:00")
        sync_windows(connection, windows, settings, NOW)
    results: list[dict[str, HourHindsight]] = []
    both = threading.Barrier(2)

    def run() -> None:
        with database.connect(autocommit=True) as connection:
            both.wait()
            results.append(sync_hindsight(connection, windows, settings, NOW))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = results
    assert sorted(first) == windows
    for window in windows:
        assert first[window].data_version == second[window].data_version
        assert first[window].changed != second[window].changed


@pytest.mark.slow
@pytest.mark.parametrize("fixture", SAMPLES)
def test_the_recorded_game_holds_no_leak_and_every_named_target_is_known(
    request: pytest.FixtureRequest, settings: Settings, fixture: str
) -> None:
    purposes = settings.model_copy(update={"train_purposes": "action,reasoning,response,evaluation,other", "train_synthetic": True})
    with request.getfixturevalue(fixture).connect(autocommit=True) as connection:
        windows = windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00")
        sync_windows(connection, windows, settings, NOW)
        found = sync_hindsight(connection, windows, purposes, NOW)
        assert sum(hour.sequences for hour in found.values()) > 1000
        assert [leak.detail for leak in stored_leaks(connection, windows)] == []
        kinds = connection.execute(
            """SELECT "kind", "organizationId" IS NULL AND "marketId" IS NULL, count(*), count("correct") FROM babylon_rl.action_outcomes
               WHERE "target" NOT LIKE '$%' AND "target" NOT LIKE 'test-%' GROUP BY 1, 2 ORDER BY 1, 2"""
        ).fetchall()
        assert [row[:2] for row in kinds] == [("prediction", False), ("stock", False)]
        assert kinds[0][3] == 0 and kinds[1][3] > 0.5 * kinds[1][2]


def test_simulated_agents_see_nothing_that_they_should_not(database: Database, settings: Settings) -> None:
    with database.connect() as connection:
        spawn(connection, SpawnRequest(agents=6, model_agents=0, windows=3, seed=0), NOW, None)
        connection.commit()
        windows = windows_with_rows(connection, "2025-12-01T00:00", "2026-01-02T00:00")
        sync_windows(connection, windows, settings, NOW)
        found = sync_hindsight(connection, windows, settings, NOW)
        assert len(found) == 3
        assert sum(hour.sequences for hour in found.values()) == 3 * 6 * 12
        assert {hour.leaked for hour in found.values()} == {0}
        # its questions are answered and its companies move, so every trade is right or wrong
        assert all(hour.known == hour.actions > 0 for hour in found.values())
        assert 0.4 < sum(hour.right for hour in found.values()) / sum(hour.known for hour in found.values()) < 0.9


def test_an_hours_secrets_are_the_questions_still_open_at_its_end(sample_database: Database, settings: Settings) -> None:
    window = "2025-10-29T14:00"
    with sample_database.connect() as connection:
        calls = [
            call for episode in read_windows(connection, [window], settings, texts=True)[window].episodes for call in episode.sequences
        ]
        secrets = hour_secrets(connection, read_outcomes(connection, window, settings), [call.trajectory_id for call in calls])
    assert calls and all(secret.question_numbers >= set(range(1, 17)) for secret in secrets.values())
    assert not any(find_leaks(call.messages, call.response, secrets[call.trajectory_id]) for call in calls)


def test_the_hash_of_a_full_hour_is_made_row_by_row() -> None:
    def action(number: int) -> StoredAction:
        return StoredAction(
            window=WINDOW, trajectory_id=f"t{number:05}", step=0, agent_id="a", action_type="TRADE", executed=True, kind="stock",
            target="é\"" * 50, organization_id=None, market_id=None, side="UP", outcome=None, change_percent=0.1, correct=None,
        )  # fmt: skip

    actions = [action(number) for number in range(10_000)]
    leaks = [StoredLeak(window=WINDOW, trajectory_id="t", sequence=1, kind="k", call_id="c", detail="d")]
    for some in ([], actions[:1], actions):
        tracemalloc.start()
        version = StoredHour(WINDOW, 5, some, leaks).counts.data_version
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        document = msgspec.json.encode([WINDOW, 5, some, leaks])
        assert version == hashlib.sha256(document).hexdigest()[:16]
        assert peak < max(20_000, len(document) / 5)
