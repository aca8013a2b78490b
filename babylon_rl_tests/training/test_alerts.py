"""Alerts: each cause is sent once to every channel, through outages of the receiver."""

import json
import re
import threading
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest
from pydantic import SecretStr

from babylon_rl import alerts
from babylon_rl.alerts import message, raise_alert, send_alerts, send_test
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.sensors import send_alerts_sensor
from babylon_rl.cli import run
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.connection import Connection
from babylon_rl.store.releases import AUTOMATION, ReleaseAuthor, change_rollout, insert_rollout, read_rollouts
from babylon_rl.store.scores import keep_pending
from babylon_rl.training.batches import cancel_batch, fail_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import window_of
from babylon_rl_tests.alert_receiver import alert_receiver
from babylon_rl_tests.assets.conftest import COUNTED
from babylon_rl_tests.plans import RecordedDatabase
from babylon_rl_tests.training.sample import NOW

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
QUIET = {"data_quality_threshold": 0.0, "training_interval_hours": 1_000_000.0}


@pytest.fixture
def receiver():
    with alert_receiver() as opened:
        yield opened


@pytest.fixture
def tick(read_sample, settings, receiver):
    """``tick(now, **settings)``: one tick with a webhook, on the recorded game, where nothing is wrong."""

    def run(now=NOW, **changes):
        changed = settings.model_copy(update={"alert_webhook_url": SecretStr(receiver.url)} | QUIET | changes)
        with read_sample.connect(autocommit=True) as connection:
            return send_alerts(connection, changed, now)

    return run


def fail_a_batch(connection: Connection, settings, now=NOW, reason="the loss left its bounds") -> str:
    frozen = freeze(connection, settings, now, max_trajectories=20, seed=1, minimum=0, settled=False)
    fail_batch(connection, frozen.batch.batch_id, reason, now)
    connection.commit()
    return frozen.batch.batch_id


def test_nothing_wrong_sends_nothing(tick, receiver):
    assert tick().sentence == "Nothing to send." and receiver.asked == 0


def test_a_failed_training_is_sent_once_with_what_to_do(tick, receiver, connection, settings):
    batch_id = fail_a_batch(connection, settings)
    assert tick().sentence == f"Sent training_failed/{batch_id}."
    assert tick(NOW + MINUTE).sentence == "Nothing to send." == tick(NOW + DAY).sentence
    (body,) = receiver.bodies
    assert body["text"].startswith(f"babylon_rl: Training failed\n{batch_id} (")
    assert "the loss left its bounds.\nWhat to do: Correct the cause" in body["text"] and "Since 2025-10-30 12:00 UTC." in body["text"]


def test_a_training_that_a_person_cancelled_is_no_alert(tick, receiver, connection, settings):
    frozen = freeze(connection, settings, NOW, max_trajectories=20, seed=1, minimum=0, settled=False)
    cancel_batch(connection, frozen.batch.batch_id, "not now", NOW)
    connection.commit()
    assert tick().sentence == "Nothing to send."


@pytest.mark.parametrize("status", [500, 429, 404])
def test_a_refused_alert_is_tried_at_each_tick_until_it_is_taken(tick, receiver, connection, settings, status):
    fail_a_batch(connection, settings)
    receiver.status = status
    assert f"webhook did not take an alert: status {status}" in tick().sentence
    tick(NOW + MINUTE)
    (alert,) = read_alerts(connection)
    connection.commit()
    assert (alert.tries, alert.sent_at, alert.error, receiver.bodies) == (2, None, f"webhook: status {status}", [])
    receiver.status = 200
    assert tick(NOW + 2 * MINUTE).causes == [alert.cause] and len(receiver.bodies) == 1
    tick(NOW + 3 * MINUTE)
    assert len(receiver.bodies) == 1 and read_alerts(connection)[0].sent_at == NOW + 2 * MINUTE


def test_a_time_out_loses_nothing_and_its_address_is_not_told(tick, receiver, connection, settings, monkeypatch):
    fail_a_batch(connection, settings)
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.1)
    receiver.delay_s = 0.3
    assert "timed out" in tick().sentence
    assert "secret-token" not in (read_alerts(connection)[0].error or "")
    connection.commit()
    receiver.delay_s = 0.0
    monkeypatch.setattr(alerts, "TIMEOUT_S", 10.0)
    tick(NOW + MINUTE)
    assert len(receiver.bodies) == 1


def test_a_channel_that_took_it_does_not_get_it_again_when_another_failed(tick, receiver, connection, settings):
    fail_a_batch(connection, settings)
    tick(discord_webhook_url=SecretStr("http://127.0.0.1:9/hook"))
    tick(NOW + MINUTE, discord_webhook_url=SecretStr(receiver.url))
    slack, discord = receiver.bodies
    assert "text" in slack and "content" in discord


def test_discord_and_slack_get_their_own_bodies(tick, receiver, connection, settings):
    fail_a_batch(connection, settings, reason="<b>&" + "x" * 3000)
    tick(discord_webhook_url=SecretStr(receiver.url))
    discord, slack = receiver.bodies
    assert len(discord["content"]) == 2000 and discord["allowed_mentions"] == {"parse": []}
    assert "&lt;b&gt;&amp;xx" in slack["text"] and "<b>" in discord["content"]


def test_two_ticks_at_once_send_one_message(tick, receiver, connection, settings):
    fail_a_batch(connection, settings)
    ticks = [threading.Thread(target=tick) for _ in range(4)]
    for one in ticks:
        one.start()
    for one in ticks:
        one.join()
    assert len(receiver.bodies) == 1


def test_without_a_channel_a_cause_is_kept_and_sent_when_there_is_one(tick, receiver, connection, settings):
    fail_a_batch(connection, settings)
    assert tick(alert_webhook_url=None).sentence == "Nothing to send."
    assert [alert.open for alert in read_alerts(connection)] == [True]
    connection.commit()
    tick(NOW + HOUR)
    assert len(receiver.bodies) == 1


def test_blocked_readiness_is_sent_after_a_day(tick, receiver, connection):
    connection.execute('UPDATE training_batches SET "completedAt" = %s', [NOW - 2 * DAY])
    connection.commit()
    blocked = {"training_interval_hours": 24.0, "training_min_trajectories": 5000, "training_daily_min_trajectories": 1000}
    tick(**blocked)
    tick(NOW + 23 * HOUR, **blocked)
    assert receiver.bodies == []
    tick(NOW + 24 * HOUR, **blocked)
    (body,) = receiver.bodies
    assert "no other can start: Need 627 more trajectories" in body["text"] and "Since 2025-10-30 12:00" in body["text"]
    assert tick(NOW + 25 * HOUR, **blocked).causes == []


def test_a_block_that_ends_within_a_day_is_never_sent_and_a_later_one_waits_its_own_day(tick, receiver, connection):
    connection.execute('UPDATE training_batches SET "completedAt" = %s', [NOW - 2 * DAY])
    connection.commit()
    blocked = {"training_interval_hours": 24.0, "training_daily_min_trajectories": 1000}
    tick(**blocked)
    tick(NOW + 20 * HOUR)  # another training was completed
    tick(NOW + 30 * HOUR, **blocked)
    tick(NOW + 50 * HOUR, **blocked)
    assert receiver.bodies == []
    tick(NOW + 54 * HOUR, **blocked)
    assert len(receiver.bodies) == 1


def test_quality_below_the_threshold_names_its_worst_check(tick, receiver):
    tick(data_quality_threshold=0.95)
    assert "and DATA_QUALITY_THRESHOLD is 95.0%: only " in receiver.bodies[0]["text"]
    # The same cause within a day is the same alert; after a day without it, it is another.
    tick(NOW + HOUR)
    tick(NOW + 2 * HOUR, data_quality_threshold=0.95)
    assert len(receiver.bodies) == 1
    tick(NOW + 3 * HOUR)
    tick(NOW + 28 * HOUR, data_quality_threshold=0.95)
    assert len(receiver.bodies) == 2


def test_a_spent_judge_budget_tells_how_many_hours_wait(tick, receiver, connection):
    keep_pending(connection, "openai/x", {"2025-10-29T14:00": "JUDGE_BUDGET_USD is 5: ...", "2025-10-29T15:00": "the judge is down"}, NOW)
    connection.commit()
    tick(judge_budget_usd=5.0)
    assert "\n$0.00 of JUDGE_BUDGET_USD ($5) is spent today, and 1 hour waits for the judge.\n" in receiver.bodies[0]["text"]


def test_rollbacks_by_a_guard_and_by_a_person_are_told_apart(tick, receiver, connection):
    for number, who in enumerate([AUTOMATION, "cli: ada"]):
        insert_rollout(connection, f"v1.0.{number}", "rolling", "gradual", 10.0, (), None, ReleaseAuthor("ada", "new", NOW))
        before = read_rollouts(connection, ("rolling",))[0]
        change_rollout(connection, before, replace(before, state="rolled_back"), ReleaseAuthor(who, "errors fail", NOW))
    connection.commit()
    assert tick().causes == ["guard_tripped/v1.0.0 2025-10-30T12:00:00", "rollback_done/v1.0.1 2025-10-30T12:00:00"]
    guard, person = (body["text"].splitlines() for body in receiver.bodies)
    assert guard[:2] == [
        "babylon_rl: A guard stopped a rollout",
        "v1.0.0 was rolled back by automation, at 10 % of agents. Reason: errors fail.",
    ]
    assert guard[2].startswith("What to do: ")
    # A person knows of it, and nothing is wrong.
    assert person[:3] == [
        "babylon_rl, notice: A version was rolled back",
        "v1.0.1 was rolled back by ada (cli), at 10 % of agents. Reason: errors fail.",
        "babylon-rl models shows the version that agents get now.",
    ]
    assert [alert.kind for alert in read_alerts(connection) if alert.notice] == ["rollback_done"]
    connection.commit()
    assert tick(NOW + 8 * DAY).causes == [] and not any(alert.open for alert in read_alerts(connection))


@pytest.mark.parametrize(("score_now", "pnl_now", "alerted"), [(0.7, -10.0, True), (0.7, 30.0, False), (0.5, -10.0, False)])
def test_scores_that_rise_while_pnl_does_not_are_an_alert(tick, receiver, connection, score_now, pnl_now, alerted):
    now = NOW.replace(year=2026)
    for number in range(24):
        for start, score, pnl in ((now - 10 * DAY, 0.5, 5.0), (now - 3 * DAY, score_now, pnl_now)):
            write_hour(connection, window_of(start + number * HOUR), score + 0.01 * (number % 3), pnl)
    connection.commit()
    assert (tick(now).causes == ["score_without_pnl"]) == alerted
    if alerted:
        assert "rose from 0.51 to 0.71, but the mean P&L of an agent's hour went from +5 to -10 dollars" in receiver.bodies[0][
            "text"
        ].replace("&amp;", "&")


def write_hour(connection: Connection, window: str, score: float, pnl: float) -> None:
    connection.execute(
        "INSERT INTO babylon_rl.windows SELECT (jsonb_populate_record(held, jsonb_build_object('window', %s::text))).*"
        " FROM babylon_rl.windows held LIMIT 1",
        [window],
    )
    connection.execute(
        "INSERT INTO babylon_rl.episodes SELECT (jsonb_populate_record(held, jsonb_build_object('window', %s::text, 'windowPnl',"
        " %s::float8))).* FROM babylon_rl.episodes held LIMIT 1",
        [window, pnl],
    )
    connection.execute(
        'INSERT INTO babylon_rl.group_scores ("window", "judge", "judgeVersion", "groupSize", "mean", "spread", "disagreement",'
        " \"inputVersion\", \"dataVersion\", \"judgedAt\") VALUES (%s, 'heuristic', '1', 5, %s, 0.1, 0, 'x', 'x', %s)",
        [window, score, NOW],
    )


def test_a_cause_raised_elsewhere_is_sent_by_the_next_tick_and_once(tick, receiver, connection):
    for _ in range(2):
        assert raise_alert(connection, "run_failed", "9f2c", "Run 9f2c of hours failed.", "See its log.", NOW) == "run_failed/9f2c"
        connection.commit()
    assert tick().causes == ["run_failed/9f2c"]
    assert receiver.bodies[0]["text"].startswith("babylon_rl: Run failed\nRun 9f2c of hours failed.\nWhat to do: See its log.")
    assert tick(NOW + HOUR).causes == [] and read_alerts(connection)[0].open


def test_sentences_end_with_a_full_stop_and_messages_have_no_backticks(connection, settings):
    connection.execute("TRUNCATE babylon_rl.alerts")
    fail_a_batch(connection, settings, reason="no `room`")
    keep_pending(connection, "openai/x", {"2025-10-29T14:00": "JUDGE_BUDGET_USD is 5: ..."}, NOW)
    insert_rollout(connection, "v1.0.0", "rolling", "gradual", 10.0, (), None, ReleaseAuthor("ada", "new", NOW))
    before = read_rollouts(connection, ("rolling",))[0]
    change_rollout(connection, before, replace(before, state="rolled_back"), ReleaseAuthor("ada", "by hand", NOW))
    connection.execute('UPDATE training_batches SET "completedAt" = %s', [NOW - 2 * DAY])
    connection.commit()
    connection.autocommit = True
    send_alerts(connection, settings.model_copy(update={"judge_budget_usd": 5.0}), NOW)
    alerts = read_alerts(connection)
    assert {alert.kind for alert in alerts} == {
        "training_failed", "judge_budget_spent", "rollback_done", "readiness_blocked", "quality_fell",
    }  # fmt: skip
    for alert in alerts:
        assert alert.says.endswith(".") and alert.advice.endswith(".") and ".." not in alert.says
        assert "`" not in message(alert) and not re.search(r"\b(\w+) \1\b", message(alert))


def test_while_nothing_is_written_no_cause_is_looked_for_until_the_next_hour(read_sample, settings, receiver):
    database = RecordedDatabase(read_sample.url)
    babylon = settings.model_copy(update={"alert_webhook_url": SecretStr(receiver.url)} | QUIET)

    def looked(now, before):
        del database.sent[:]
        with database.connect(autocommit=True) as connection:
            sent = send_alerts(connection, babylon, now, before)
            connection.execute(COUNTED)
        return any("babylon_rl.episodes" in statement.text for statement in database.sent), sent.looked

    did, mark = looked(NOW, None)
    assert did and looked(NOW + MINUTE, mark) == (False, mark)
    with database.connect(autocommit=True) as connection:
        fail_a_batch(connection, settings)
        connection.execute(COUNTED)
    did, later = looked(NOW + 2 * MINUTE, mark)
    assert did and later != mark and len(receiver.bodies) == 1
    did, hour = looked(NOW + HOUR, later)
    assert did and hour != later


def test_a_test_message_reaches_every_channel(receiver, settings):
    sent = send_test(settings.model_copy(update={"alert_webhook_url": SecretStr(receiver.url)}), NOW)
    assert sent.causes == ["webhook"] and "This is a test." in receiver.bodies[0]["text"]


def test_the_sensor_says_what_it_sent(read_sample, settings, receiver, connection):
    batch_id = fail_a_batch(connection, settings)
    changed = settings.model_copy(update={"alert_webhook_url": SecretStr(receiver.url)} | QUIET)
    context = dg.build_sensor_context(resources={"babylon": Babylon(changed, read_sample, lambda: NOW)})
    assert send_alerts_sensor(context) == dg.SkipReason(f"Sent training_failed/{batch_id}.")


def test_the_command_lists_alerts_and_tests_the_channels(connection, settings, receiver, read_sample, monkeypatch, capsys, tmp_path):
    batch_id = fail_a_batch(connection, settings)
    for name, value in {"DATABASE_URL": read_sample.url, "ALERT_WEBHOOK_URL": receiver.url, "BABYLON_RL_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with read_sample.connect(autocommit=True) as other:
        send_alerts(other, settings.model_copy(update=QUIET), NOW)
    assert run(["alerts", "--json"]) == 0
    (alert,) = json.loads(capsys.readouterr().out)["alerts"]
    assert (alert["cause"], alert["sentAt"], alert["channels"]) == (f"training_failed/{batch_id}", None, [])
    assert run(["alerts", "--test"]) == 0 and "This is a test." in receiver.bodies[0]["text"]
    receiver.status = 500
    assert run(["alerts", "--test"]) == 1 and "webhook: status 500" in capsys.readouterr().out
    monkeypatch.delenv("ALERT_WEBHOOK_URL")
    assert run(["alerts", "--test"]) == 2
