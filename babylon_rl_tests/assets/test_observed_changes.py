"""The sensor ``observe_changes`` on the recorded game."""

import dagster as dg

from babylon_rl.automation.sensors import observe_changes
from babylon_rl_tests.assets.conftest import HOURS, Bench, ask


def test_the_first_look_reports_all_hours_and_the_second_none(bench: Bench):
    first = ask(bench, observe_changes)
    assert {event.partition for event in first.asset_events} >= {"2025-01-15T10:00", *HOURS}
    assert first.cursor.startswith("swept ")
    for event in first.asset_events:
        bench.instance.report_runless_asset_event(event)
    assert ask(bench, observe_changes, first.cursor) == dg.SkipReason("No hour changed.")


def test_the_recent_look_sees_what_the_full_look_sees(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""UPDATE trajectories SET "updatedAt" = '2025-10-31 11:00' WHERE "windowId" = '2025-10-29T14:00'""")
    late = ask(bench, observe_changes, "swept")
    assert [(event.asset_key.to_user_string(), event.partition) for event in late.asset_events] == [
        ("raw_trajectories", "2025-10-29T14:00")
    ]


def test_columns_that_the_pipeline_writes_change_no_version(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute(
        """UPDATE trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = 'x', "aiJudgeReward" = 0.5, "judgedAt" = '2025-10-31'"""
    )
    assert ask(bench, observe_changes).asset_events == []
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")


def test_an_hour_whose_rows_are_gone_is_reported(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-10-29T15:00'""")
    gone = {event.asset_key.to_user_string(): event for event in ask(bench, observe_changes, "swept").asset_events}
    assert gone["raw_trajectories"].partition == "2025-10-29T15:00"


def test_what_changed_is_said_in_words(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        assert event.metadata["change"].value == "seen for the first time"
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM "WorldEvent" WHERE id = (SELECT max(id) FROM "WorldEvent" WHERE "timestamp" >= '2025-10-29 14:00'
        AND "timestamp" < '2025-10-29 15:00')""")
    bench.execute("""UPDATE "Organization" SET name = name || '!' WHERE id = (SELECT max("organizationId") FROM "StockPrice")""")
    changes = {event.partition: event.metadata["change"].value for event in ask(bench, observe_changes, "swept").asset_events}
    assert changes.pop("2025-10-29T14:00") == "events: 1 fewer; start prices: changed"
    assert set(changes.values()) == {"start prices: changed"}
    bench.run("observe")
    logged = bench.instance.fetch_observations(dg.AssetKey("market_data"), limit=1000).records
    assert {record.asset_observation.metadata["change"].value for record in logged[: len(changes)]} >= {"start prices: changed"}
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")


def test_an_hour_older_than_a_week_waits_for_the_night(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-01-15T11:00'""")
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")
    bench.run("observe")
    assert bench.observed("raw_trajectories")["2025-01-15T11:00"] == "no rows"
