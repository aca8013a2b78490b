"""Which hours automation asks for: those that changed, each once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import given
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.conditions import on_scores_due, once_settled
from babylon_rl.automation.jobs import HOURLY
from babylon_rl.definitions import defs
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import window_end, window_of, window_range
from babylon_rl_tests.assets.conftest import Bench
from babylon_rl_tests.judge.model_judge import MODEL
from babylon_rl_tests.judge.scripted_server import judging

pytestmark = pytest.mark.slow

FIRST, LATE, LAST = "2025-10-29T13:00", "2025-10-29T14:00", "2025-10-29T17:00"


class Ticks:
    """Evaluates the conditions again and again, as the sensor does."""

    def __init__(self, bench: Bench, definitions: dg.Definitions = defs) -> None:
        self.bench, self.definitions, self.cursor = bench, definitions, None

    def __call__(self, at: datetime | None = None) -> dict[str, set[str]]:
        result = dg.evaluate_automation_conditions(self.definitions, self.bench.instance, cursor=self.cursor, evaluation_time=at)
        self.cursor = result.cursor
        names = ("window_groups", "market_outcomes", "scored_groups")
        found = {name: set(result.get_requested_partitions(dg.AssetKey(name))) for name in names}
        return {name: windows for name, windows in found.items() if windows}


def add_late_row(bench: Bench, window: str) -> None:
    bench.execute(
        """
        INSERT INTO trajectories SELECT (r).* FROM (
            SELECT jsonb_populate_record(t, jsonb_build_object('id', 'late', 'trajectoryId', 'late')) AS r
            FROM trajectories t WHERE "windowId" = %s AND "isTrainingData" AND NOT "isEvaluation" ORDER BY "trajectoryId" LIMIT 1) one
        """,
        window,
    )


@pytest.fixture
def afternoon(make_bench: Callable[..., Bench], sample_database: Database) -> Bench:
    """The five hours from 13:00 to 18:00, as seen soon after."""
    return make_bench(sample_database, now=datetime(2025, 10, 29, 18, 10), first_window="2025-10-29T13:00")


@pytest.fixture
def settled(afternoon: Bench) -> tuple[Bench, Ticks]:
    """Everything observed and made, and the conditions asked once."""
    afternoon.run("observe")
    afternoon.run("hours", FIRST, LAST)
    ticks = Ticks(afternoon)
    assert ticks() == {}
    return afternoon, ticks


@pytest.mark.long
def test_hours_observed_before_the_first_look_are_made(afternoon: Bench):
    afternoon.run("observe")
    observed = set(afternoon.observed("raw_trajectories"))
    assert len(observed) == 5
    ticks = Ticks(afternoon)
    assert ticks() == {"window_groups": observed, "market_outcomes": observed}
    assert ticks() == {}
    for asset in ("window_groups", "market_outcomes"):
        afternoon.run("hours", FIRST, LAST, asset_selection=[dg.AssetKey(asset)])
    assert ticks() == {"scored_groups": observed}
    assert ticks() == {}


def test_hours_that_were_not_observed_are_never_asked_for(afternoon: Bench):
    ticks = Ticks(afternoon)
    assert ticks() == {}
    assert ticks() == {}


@pytest.mark.long
def test_a_late_row_makes_exactly_its_hour_again(settled: tuple[Bench, Ticks]):
    bench, ticks = settled
    add_late_row(bench, LATE)
    bench.run("observe")
    assert ticks() == {"window_groups": {LATE}}
    bench.run("hours", LATE, asset_selection=[dg.AssetKey("window_groups")])
    assert ticks() == {"scored_groups": {LATE}}
    bench.run("score", LATE)
    assert ticks() == {}


STALE = """query Stale($assets: [AssetKeyInput!], $hours: [String!]) {
    assetNodes(assetKeys: $assets) {
        assetKey { path }
        staleStatusByPartition(partitions: $hours)
        staleCausesByPartition(partitions: $hours) { reason }
    }
}"""


def stale_hours(bench: Bench) -> dict[str, dict[str, list[str]]]:
    """What the UI calls out of sync, and why, by asset and hour."""
    windows = list(window_range(FIRST, window_of(window_end(LAST))))
    asked = {"assets": [{"path": [name]} for name in HOURLY], "hours": windows}
    home = Path(bench.instance.root_directory)
    subprocess.run(
        [
            Path(sys.executable).with_name("dagster-graphql"), "--module-name", "babylon_rl.definitions", "--text", STALE,
            "--variables", json.dumps(asked), "--output", home / "answer.json",
        ],
        env={**os.environ, "DAGSTER_HOME": str(home)}, check=True,
    )  # fmt: skip
    found: dict[str, dict[str, list[str]]] = {}
    for node in json.loads((home / "answer.json").read_text())["data"]["assetNodes"]:
        shown = zip(windows, node["staleStatusByPartition"], node["staleCausesByPartition"], strict=True)
        for window, status, causes in shown:
            if status == "STALE":
                found.setdefault(node["assetKey"]["path"][-1], {})[window] = [cause["reason"] for cause in causes]
    return found


@pytest.mark.long
def test_a_late_row_shows_exactly_its_hour_and_what_depends_on_it_as_stale(afternoon: Bench, tmp_path: Path):
    # The code location of a UI is a process of its own, which an instance in memory has not.
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        late_row_shows_its_hour(replace(afternoon, instance=instance))


def late_row_shows_its_hour(bench: Bench):
    bench.run("observe")
    bench.run("hours", FIRST, LAST)
    assert stale_hours(bench) == {}
    add_late_row(bench, LATE)
    bench.run("observe")
    assert stale_hours(bench) == {"window_groups": {LATE: ["has a new data version"]}}
    bench.run("hours", LATE, asset_selection=[dg.AssetKey("window_groups")])
    stale = {name: list(windows) for name, windows in stale_hours(bench).items()}
    assert stale == {name: [LATE] for name in ("answer_groups", "hindsight", "scored_groups")}
    bench.run("hours", LATE)
    assert stale_hours(bench) == {}


@pytest.mark.long
def test_an_unchanged_hour_made_alone_again_and_one_observed_again_wake_nobody(settled: tuple[Bench, Ticks]):
    bench, ticks = settled
    bench.run("hours", LATE, asset_selection=[dg.AssetKey("window_groups")])
    ticks()
    bench.run("hours", LATE, asset_selection=[dg.AssetKey("window_groups")])
    assert ticks() == {}
    # As after an update to a release that keeps versions in a table of its own: everything is observed once more.
    bench.execute("DELETE FROM babylon_rl.observed_versions")
    before = len(bench.observed_events("raw_trajectories"))
    bench.run("observe")
    assert len(bench.observed_events("raw_trajectories")) == 2 * before
    assert ticks() == {}


@pytest.mark.long
def test_an_unchanged_range_has_its_successors_looked_at_once(settled: tuple[Bench, Ticks]):
    bench, ticks = settled
    # A range of other bounds has another version, though each of its hours is as before.
    bench.run("hours", FIRST, LATE, asset_selection=[dg.AssetKey("window_groups")])
    assert ticks() == {"scored_groups": {FIRST, LATE}}
    bench.run("score", FIRST, LATE)
    assert {bench.materializations("scored_groups")[window].metadata["changed"].value for window in (FIRST, LATE)} == {False}
    assert ticks() == {}
    bench.run("hours", FIRST, LATE, asset_selection=[dg.AssetKey("window_groups")])
    assert ticks() == {}


@pytest.mark.long
def test_a_paid_judge_is_not_asked_again_after_an_unchanged_range(make_bench: Callable[..., Bench], sample_database: Database):
    with judging() as judge:
        paid = {"judge_model": MODEL, "judge_base_url": judge.url, "judge_disagreement": 1.0, "judge_settle_hours": 0.0}
        bench = make_bench(sample_database, now=datetime(2025, 10, 29, 18, 10), first_window=FIRST, **paid)
        ticks = Ticks(bench, paid_location(bench))
        bench.run("observe")
        bench.run("hours", FIRST, LAST)
        asked = judge.stats()["requests"]
        assert asked > 0 and ticks() == {}
        bench.run("hours", FIRST, LATE, asset_selection=[dg.AssetKey("window_groups"), dg.AssetKey("market_outcomes")])
        assert ticks() == {}
        bench.run("score", FIRST, LAST)
        assert judge.stats()["requests"] == asked
        assert ticks() == {}


def paid_location(bench: Bench) -> dg.Definitions:
    """The code location with the conditions of a paid judge."""
    location = code_location(given(bench.babylon))
    when = on_scores_due(bench.babylon.settings)
    key = dg.AssetKey("scored_groups")
    return location.map_asset_specs(func=lambda spec: spec.replace_attributes(automation_condition=when) if spec.key == key else spec)


@pytest.mark.long
def test_what_failed_is_asked_for_once_an_hour_and_at_the_next_change(settled: tuple[Bench, Ticks]):
    bench, ticks = settled
    add_late_row(bench, LATE)
    bench.run("observe")
    assert ticks() == {"window_groups": {LATE}}
    bench.execute('ALTER TABLE trajectories RENAME COLUMN "finalPnL" TO "gone"')
    with pytest.raises(dg.Failure):
        bench.run("hours", LATE, LATE, asset_selection=[dg.AssetKey("window_groups")])
    bench.execute('ALTER TABLE trajectories RENAME COLUMN "gone" TO "finalPnL"')
    soon = datetime.now(UTC)
    assert ticks(soon) == {}
    assert ticks(soon + timedelta(hours=1)) == {"window_groups": {LATE}}
    assert ticks(soon + timedelta(hours=1, seconds=30)) == {}
    bench.execute("""DELETE FROM trajectories WHERE "trajectoryId" = 'late'""")
    bench.run("observe")
    assert ticks() == {"window_groups": {LATE}}


@pytest.mark.long
def test_a_late_answer_makes_the_hours_in_which_its_question_was_open(settled: tuple[Bench, Ticks]):
    bench, ticks = settled
    bench.execute(
        """
        UPDATE "Question" SET "resolvedOutcome" = TRUE, "updatedAt" = '2025-10-29 16:30' WHERE id = (
            SELECT id FROM "Question" WHERE "resolvedOutcome" IS NULL AND "createdDate" < '2025-10-29 13:00' ORDER BY id LIMIT 1)
        """
    )
    bench.run("observe")
    requested = ticks()
    assert requested.keys() == {"market_outcomes"}
    assert {"2025-10-29T14:00", "2025-10-29T15:00", "2025-10-29T16:00"} <= requested["market_outcomes"]


def test_a_paid_judge_waits_until_the_hour_has_settled(settings: Settings):
    paid = settings.model_copy(update={"judge_model": "openai/gpt-4o-mini", "judge_settle_hours": 6})

    @dg.asset(partitions_def=hours)
    def window_groups() -> None: ...

    @dg.asset(partitions_def=hours, deps=[window_groups], automation_condition=on_scores_due(paid))
    def scored() -> None: ...

    small = dg.Definitions([window_groups, scored])
    ask: Callable[..., dg.EvaluateAutomationConditionsResult] = dg.evaluate_automation_conditions
    with dg.DagsterInstance.ephemeral() as instance:
        assert ask(small, instance, evaluation_time=datetime(2025, 10, 31, 12, 1)).total_requested == 0
        for window in ("2025-10-31T05:00", "2025-10-31T06:00"):
            dg.materialize([window_groups], partition_key=window, instance=instance)
        first = ask(small, instance, evaluation_time=datetime(2025, 10, 31, 12, 1))
        assert first.get_requested_partitions(dg.AssetKey("scored")) == {"2025-10-31T05:00"}
        early = ask(small, instance, evaluation_time=datetime(2025, 10, 31, 12, 59), cursor=first.cursor)
        assert early.total_requested == 0
        then = ask(small, instance, evaluation_time=datetime(2025, 10, 31, 13) + timedelta(minutes=1), cursor=early.cursor)
        assert then.get_requested_partitions(dg.AssetKey("scored")) == {"2025-10-31T06:00"}


def with_changed(definitions: dg.Definitions, *names: str, **attributes: object) -> dg.Definitions:
    """The definitions with other attributes of some assets."""
    changed = {dg.AssetKey(name) for name in names}
    return definitions.map_resolved_asset_specs(
        func=lambda spec: spec.replace_attributes(**attributes), selection=dg.AssetSelection.assets(*changed)
    )


@pytest.mark.long
def test_a_change_of_rules_makes_every_made_hour_again_and_those_alone(settled: tuple[Bench, Ticks]):
    _, ticks = settled
    made = set(window_range(FIRST, window_of(window_end(LAST))))
    ticks.definitions = with_changed(defs, "window_groups", "market_outcomes", code_version="another")
    assert ticks() == {"window_groups": made, "market_outcomes": made}
    assert ticks() == {}, "once"
    ticks.definitions = with_changed(ticks.definitions, "scored_groups", code_version="another")
    assert ticks() == {"scored_groups": made}, "the heuristic is free"


def test_a_paid_judge_is_not_asked_because_its_rubric_changed(settled: tuple[Bench, Ticks]):
    _, ticks = settled
    ticks.definitions = with_changed(defs, "scored_groups", automation_condition=once_settled(0))
    assert ticks() == {}
    ticks.definitions = with_changed(ticks.definitions, "scored_groups", code_version="another")
    assert ticks() == {} and ticks() == {}
