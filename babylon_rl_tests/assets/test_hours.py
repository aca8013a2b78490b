"""The hourly assets over the recorded game: its twelve hours, of which seven are ready."""

import re

import dagster as dg
import pytest

from babylon_rl.assets.resources import WINDOW_TAG
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.types import REJECTION_REASONS
from babylon_rl_tests.assets.conftest import VERSION, Bench

FIRST_DAY, LAST_DAY = ("2025-01-15T10:00", "2025-01-15T14:00"), ("2025-10-29T04:00", "2025-10-30T01:00")
HOURS = {
    "2025-01-15T10:00", "2025-01-15T11:00", "2025-01-15T12:00", "2025-01-15T13:00", "2025-01-15T14:00", "2025-10-29T04:00",
    "2025-10-29T13:00", "2025-10-29T14:00", "2025-10-29T15:00", "2025-10-29T16:00", "2025-10-29T17:00", "2025-10-30T01:00",
}  # fmt: skip
READY = {window for window in HOURS if window > "2025-10"}


def test_observing_finds_the_hours_that_hold_rows(bench: Bench):
    bench.run("observe")
    assert set(bench.observed("raw_trajectories")) == HOURS
    assert set(bench.observed("market_data")) >= HOURS


def test_observing_again_reports_nothing(bench: Bench):
    bench.run("observe")
    again = bench.run("observe")
    assert not [event for event in again.all_events if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION]


@pytest.mark.long
def test_a_range_run_reports_every_hour_for_itself(bench: Bench):
    for first, last in (FIRST_DAY, LAST_DAY):
        bench.run("hours", first, last)
    groups, outcomes, scores = (bench.materializations(name) for name in ("window_groups", "market_outcomes", "scored_groups"))
    assert {window for window, entry in groups.items() if entry.metadata["dagster/row_count"].value} == HOURS
    assert {window for window, entry in groups.items() if entry.metadata["ready"].value} == READY
    assert {window for window, entry in scores.items() if entry.metadata["dagster/row_count"].value} == READY
    assert {window for window, entry in outcomes.items() if entry.metadata["dagster/row_count"].value} >= READY


@pytest.mark.long
def test_a_range_has_one_version_which_is_the_same_next_time(bench: Bench):
    names, found = ("window_groups", "market_outcomes", "scored_groups"), []
    for _ in range(2):
        bench.run("hours", "2025-10-29T13:00", "2025-10-29T15:00")
        found.append({name: {entry.tags[VERSION] for entry in bench.materializations(name).values()} for name in names})
    assert found[0] == found[1] and {len(versions) for versions in found[0].values()} == {1}


@pytest.mark.slow
def test_a_range_has_one_materialization_an_hour_which_names_its_inputs(bench: Bench):
    bench.run("observe")
    bench.run("hours", *FIRST_DAY)
    for name in ("window_groups", "market_outcomes", "scored_groups"):
        events = bench.instance.fetch_materializations(dg.AssetKey(name), limit=1000).records
        assert len(events) == len({event.partition_key for event in events}) == 5
    assert bench.materializations("scored_groups")["2025-01-15T12:00"].tags["dagster/input_event_pointer/window_groups"].isdigit()


@pytest.mark.long
def test_an_hours_page_is_small_and_shows_pictures(bench: Bench):
    bench.run("hours", "2025-10-29T14:00")
    pictures = {
        "window_groups": ["P&L by agent", "Rejected rows"], "market_outcomes": ["Price changes", "Within the hour"],
        "scored_groups": ["Scores by agent"],
    }  # fmt: skip
    for name, expected in pictures.items():
        metadata = bench.materializations(name)["2025-10-29T14:00"].metadata
        # One entry, so that one click shows all of them.
        assert re.findall(r"!\[([^,]+), 2025-10-29T14:00.*?\]\(data:image/png;base64,", metadata["pictures"].value) == expected
        assert not next(iter(metadata)).startswith("dagster/")
        assert sum(len(repr(value)) for value in metadata.values()) < 60_000


@pytest.mark.long
def test_an_hours_page_lists_what_was_rejected(bench: Bench):
    bench.run("hours", "2025-10-29T16:00")
    rows = bench.materializations("window_groups")["2025-10-29T16:00"].metadata["rejected_rows"].value
    assert [column.name for column in rows.schema.columns] == ["reason", "trajectory", "detail"]
    reasons = [record.data["reason"] for record in rows.records]
    assert len(reasons) == 8 and set(reasons) == set(REJECTION_REASONS)
    assert all(record.data["detail"] and record.data["trajectory"] for record in rows.records)


@pytest.mark.long
def test_only_the_newest_hour_of_a_range_is_drawn(bench: Bench):
    bench.run("hours", "2025-10-29T13:00", "2025-10-29T16:00")
    for asset in ("window_groups", "market_outcomes", "scored_groups"):
        pages = bench.materializations(asset)
        assert {window for window, page in pages.items() if "pictures" in page.metadata} == {"2025-10-29T16:00"}
    assert "rejected_rows" in bench.materializations("window_groups")["2025-10-29T13:00"].metadata


@pytest.mark.slow
def test_a_range_gets_a_verdict_for_all_of_its_hours(bench: Bench):
    verdicts = bench.verdicts("hours", "2025-10-29T14:00", "2025-10-29T15:00")
    assert {verdict.partition for verdict in verdicts.values()} == {None}
    passed = {name for name, verdict in verdicts.items() if verdict.passed}
    assert {"few_rows_malformed", "messages_recorded", "outcomes_unflagged", "scores_differ"} <= passed


@pytest.mark.long
def test_checks_pass_on_the_recorded_game_and_fail_when_nothing_can_train(bench: Bench):
    def failed(hour: str) -> set[str]:
        verdicts = bench.verdicts("hours", hour).items()
        return {name for name, found in verdicts if not found.passed and not (found.description or "").startswith("Nothing measured")}

    assert failed("2025-10-29T14:00") == set()
    bench.execute("""UPDATE trajectories SET "stepsJson" = 'no' WHERE "windowId" = '2025-10-29T15:00'""")
    assert failed("2025-10-29T15:00") == {"few_rows_malformed", "few_rows_rejected"}


@pytest.mark.slow
def test_an_hour_without_rows_is_no_error(bench: Bench):
    result = bench.run("hours", "2025-10-29T08:00")
    assert result.success
    assert bench.materializations("scored_groups")["2025-10-29T08:00"].metadata["dagster/row_count"].value == 0


@pytest.mark.parametrize(
    ("job", "partition", "said"),
    [
        ("hours", "2031-01-01T00:00", "2031-01-01T00:00 has not ended; an hour is read once it is over."),
        ("score", "2025-10-31T12:00", "2025-10-31T12:00 has not ended; an hour is read once it is over."),
        ("hours", "2024-12-31T23:00", "2024-12-31T23:00 lies before FIRST_WINDOW (2025-01-01T00:00): set FIRST_WINDOW to "),
        ("train", "batch-0", "There is no batch batch-0; `babylon-rl batches` lists them."),
        ("hours", None, "This run names no hour: give it one by --tags "),
        ("train", None, "This run names no batch: give it one by --tags "),
    ],
)
def test_a_run_without_its_hour_or_batch_is_canceled_with_a_sentence(bench: Bench, job: str, partition: str | None, said: str):
    tags = {} if partition is None else {"dagster/partition": partition}
    job_definition(job, bench.babylon).execute_in_process(instance=bench.instance, tags=tags, run_config=QUIET, raise_on_error=False)
    # Not failed: its assets would be red, with nothing to mend.
    (run,) = bench.instance.get_runs()
    assert run.status == dg.DagsterRunStatus.CANCELED
    (canceled,) = bench.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_CANCELED)
    assert canceled.message.startswith(said) or canceled.get_dagster_event().message.startswith(said)
    assert bench.instance.fetch_materializations(dg.AssetKey("window_groups"), limit=1).records == []


@pytest.mark.long
def test_the_runs_of_an_hour_are_found_by_its_tag(bench: Bench):
    bench.run("hours", "2025-10-29T14:00")
    (run,) = bench.instance.get_runs(dg.RunsFilter(tags={WINDOW_TAG: "2025-10-29T14:00"}))
    assert run.tags["dagster/partition"] == "2025-10-29T14:00"
