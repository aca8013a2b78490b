"""Hours that wait for their judge are asked for again by the automation, now and then."""

from collections.abc import Callable
from datetime import datetime, timedelta

import dagster as dg
import pytest

from babylon_rl.assets.resources import given
from babylon_rl.automation.batch_runs import JUDGE_ASKED_AFTER, judge_asked_at
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.sensors import SENSOR_TAG, ask_judge_again
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.scores import keep_pending, read_pending
from babylon_rl.windows import HOUR, utc_now
from babylon_rl_tests.assets.conftest import Bench, ask
from babylon_rl_tests.judge.model_judge import MODEL, asking, filled
from babylon_rl_tests.judge.scripted_server import judging

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9/v1"
SCORES = [dg.AssetKey("scored_groups")]


@pytest.mark.long
def test_hours_that_waited_for_their_judge_are_asked_for_again_with_a_back_off(make_bench: Callable[..., Bench], database: Database):
    windows, now = filled(database, 3), utc_now()
    chosen = asking(make_bench(database).babylon.settings, NOBODY)
    changed = {name: getattr(chosen, name) for name in ("judge_model", "judge_base_url", "judge_timeout_seconds", "judge_disagreement")}
    down = make_bench(database, now=now, **changed)
    down.run("score", windows[0], windows[-1])
    judged = {str(report.metadata["judged"].value) for report in down.materializations("scored_groups").values()}
    assert judged == {"pending: it waits for another run"}
    # By the conditions alone these hours are made.
    everything = code_location(given(down.babylon))
    assert dg.evaluate_automation_conditions(everything, down.instance).get_requested_partitions(SCORES[0]) == set()
    at = now + JUDGE_ASKED_AFTER
    assert ask(down, ask_judge_again).skip_message == f"3 hours wait for their judge, which is asked again at {at:%Y-%m-%d %H:%M} UTC."
    with judging() as judge:
        up = make_bench(database, now=at + timedelta(minutes=1), **changed | {"judge_base_url": judge.url})
        context = dg.build_sensor_context(
            instance=up.instance, resources={"babylon": up.babylon}, repository_def=everything.get_repository_def()
        )
        (request,) = ask_judge_again.evaluate_tick(context).run_requests
        again = up.instance.create_run_for_job(
            job_definition("score", up.babylon), tags={SENSOR_TAG: "ask_judge_again"}, status=dg.DagsterRunStatus.STARTED
        )
        assert ask(up, ask_judge_again).skip_message == "3 hours wait for their judge, and a run asks it now."
        up.instance.report_run_failed(up.instance.get_run_by_id(again.run_id))
        result = job_definition("score", up.babylon).execute_in_process(instance=up.instance, tags=request.tags)
        assert result.success
    assert ask(up, ask_judge_again) == dg.SkipReason("No hour waits for its judge.")
    assert {report.metadata["judge"].value for report in up.materializations("scored_groups").values()} == {MODEL}


def test_a_run_that_died_before_it_asked_is_followed_by_the_next_after_a_while(make_bench: Callable[..., Bench], database: Database):
    filled(database, 1)
    now = utc_now()
    bench = make_bench(database, now=now, judge_model=MODEL)
    bench.execute("INSERT INTO babylon_rl.judge_pending VALUES ('2025-10-29T14:00', %s, 'It is down.', %s)", MODEL, now - 2 * HOUR)
    assert len(ask(bench, ask_judge_again).run_requests) == 1
    bench.instance.create_run_for_job(
        job_definition("score", bench.babylon), tags={SENSOR_TAG: "ask_judge_again"}, status=dg.DagsterRunStatus.FAILURE
    )
    assert "which is asked again at" in ask(bench, ask_judge_again).skip_message
    later = make_bench(database, now=now + HOUR, judge_model=MODEL)
    (request,) = ask(later, ask_judge_again).run_requests
    assert request.tags == {"dagster/partition": "2025-10-29T14:00"}


def test_pauses_double_while_the_judge_is_down_and_last_until_the_day_ends_when_its_budget_is_spent(database: Database, settings: Settings):
    window, asked_at = "2025-10-29T14:00", datetime(2025, 10, 29, 22, 10)
    limited = settings.model_copy(update={"judge_budget_usd": 5.0})

    def asked_again_after(reason: str, settings: Settings) -> timedelta:
        with database.connect(autocommit=True) as connection:
            keep_pending(connection, MODEL, {window: reason}, asked_at)
            return judge_asked_at(read_pending(connection)[window], settings) - asked_at

    pauses = [asked_again_after("It is down.", limited) for _ in range(6)]
    assert pauses == [timedelta(hours=hours) for hours in (0.5, 1, 2, 4, 4, 4)]
    spent = "JUDGE_BUDGET_USD is 5: $4.9 are spent today (UTC) or by this run."
    assert asked_at + asked_again_after(spent, limited) == datetime(2025, 10, 30)
    # A limit that a person has changed since need not wait for the next day.
    assert asked_again_after(spent, settings) == asked_again_after("JUDGE_BUDGET_USD is 4: ...", limited) == timedelta(hours=4)
    with database.connect(autocommit=True) as connection:
        keep_pending(connection, "openai/another", {window: "It is down."}, asked_at)
        assert read_pending(connection, [window])[window].asked == 1
