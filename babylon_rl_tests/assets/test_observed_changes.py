"""The sensor ``observe_changes`` on the recorded game: what it reports, and that no storage misses anything."""

import dagster as dg
import pytest

from babylon_rl.assets import sources
from babylon_rl.assets.sources import observe, report
from babylon_rl_tests.assets.conftest import HOURS, Bench

QUIET = "No hour changed."


def places(events: list[dg.AssetObservation]) -> list[tuple[str, str | None]]:
    return sorted((event.asset_key.to_user_string(), event.partition) for event in events)


def test_the_first_look_reports_all_hours_and_the_second_none(bench: Bench):
    first, cursor, said = bench.look()
    assert {event.partition for event in first} >= {"2025-01-15T10:00", *HOURS}
    assert cursor.startswith("swept ") and said == f"{len(first)} of {len(first)} changed hours reported."
    assert bench.look(cursor) == ([], cursor, QUIET)
    assert bench.look("swept")[2] == QUIET


def test_the_recent_look_sees_what_the_full_look_sees(bench: Bench):
    bench.look()
    bench.execute("""UPDATE trajectories SET "updatedAt" = '2025-10-31 11:00' WHERE "windowId" = '2025-10-29T14:00'""")
    assert places(bench.look("swept")[0]) == [("raw_trajectories", "2025-10-29T14:00")]


def test_columns_that_the_pipeline_writes_change_no_version(bench: Bench):
    bench.look()
    bench.execute(
        """UPDATE trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = 'x', "aiJudgeReward" = 0.5, "judgedAt" = '2025-10-31'"""
    )
    assert bench.look()[2] == bench.look("swept")[2] == QUIET


def test_an_hour_whose_rows_are_gone_is_reported(bench: Bench):
    bench.look()
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-10-29T15:00'""")
    assert ("raw_trajectories", "2025-10-29T15:00") in places(bench.look("swept")[0])


def test_what_changed_is_said_in_words(bench: Bench):
    assert {event.metadata["change"].value for event in bench.look()[0]} == {"seen for the first time"}
    bench.execute("""DELETE FROM "WorldEvent" WHERE id = (SELECT max(id) FROM "WorldEvent" WHERE "timestamp" >= '2025-10-29 14:00'
        AND "timestamp" < '2025-10-29 15:00')""")
    bench.execute("""UPDATE "Organization" SET name = name || '!' WHERE id = (SELECT max("organizationId") FROM "StockPrice")""")
    changes = {event.partition: event.metadata["change"].value for event in bench.look("swept")[0]}
    assert changes.pop("2025-10-29T14:00") == "events: 1 fewer; start prices: changed"
    assert set(changes.values()) == {"start prices: changed"}
    assert bench.look("swept")[2] == QUIET


def test_an_hour_older_than_a_week_waits_for_the_night(bench: Bench):
    bench.look()
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-01-15T11:00'""")
    assert bench.look("swept")[2] == QUIET
    bench.run("observe")
    assert bench.observed("raw_trajectories")["2025-01-15T11:00"] == "no rows"


def test_another_storage_beside_a_full_table_is_told_everything(bench: Bench):
    first, _, _ = bench.look()
    with dg.DagsterInstance.ephemeral() as another:
        assert places(Bench(another, bench.babylon).look()[0]) == places(first)
    assert bench.look()[2] == QUIET


def test_a_source_that_was_wiped_is_reported_again(bench: Bench):
    first, _, _ = bench.look()
    bench.instance.wipe_assets([sources.RAW_TRAJECTORIES])
    again = bench.look()[0]
    assert places(again) == [place for place in places(first) if place[0] == "raw_trajectories"]


@pytest.mark.parametrize("told", [0, 3])
def test_a_crash_between_a_report_and_its_note_only_reports_again(bench: Bench, told: int):
    left = [told]

    def crash(event: dg.AssetObservation) -> None:
        if not left[0]:
            raise RuntimeError("killed")
        left[0] -= 1
        bench.instance.report_runless_asset_event(event)

    seen = observe(bench.instance, bench.babylon, full=True)
    with pytest.raises(RuntimeError):
        report(bench.babylon, seen.storage, seen.changes, crash)
    assert len(bench.look()[0]) == len(seen.changes)
    assert bench.look()[2] == QUIET


def test_an_older_look_that_is_reported_late_is_left_out(bench: Bench):
    bench.look()
    bench.execute("""UPDATE trajectories SET "updatedAt" = '2025-10-31 10:00' WHERE "windowId" = '2025-10-29T14:00'""")
    older = observe(bench.instance, bench.babylon, full=True)
    bench.execute("""UPDATE trajectories SET "updatedAt" = '2025-10-31 11:00' WHERE "windowId" = '2025-10-29T14:00'""")
    (newer,) = bench.look("swept")[0]
    assert report(bench.babylon, older.storage, older.changes, bench.instance.report_runless_asset_event) == 0
    assert bench.observed("raw_trajectories")["2025-10-29T14:00"] == newer.tags["dagster/data_version"]
