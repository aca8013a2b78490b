"""The asset of the report, its checks and the release, in Dagster, on results that are stored already."""

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon, given
from babylon_rl.automation.checks_batches import GATE_CHECKS
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.evaluation.benchmark import evaluate_batch
from babylon_rl.store.benchmarks import write_report
from babylon_rl.types import BenchmarkReport
from babylon_rl_tests.evaluation.conftest import NOW, simulated
from babylon_rl_tests.evaluation.endpoint import always_buy, endpoint, hold, reads_fresh, reads_news

pytestmark = pytest.mark.slow

ASSETS = [dg.AssetKey("benchmark_report"), dg.AssetKey("released_model")]


@pytest.fixture
def materialized(connection, database, settings):
    """``materialized(batch, rules)``: the verdicts of the checks once the asset was made from what ``rules`` answered."""

    def make(batch: str, **rules) -> dict[str, dg.AssetCheckEvaluation]:
        with endpoint(**rules) as served:
            evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions(str(batches.name), [batch])
            job = job_definition("train", Babylon(settings, database, lambda: NOW))
            run = job.execute_in_process(instance=instance, partition_key=batch, run_config=QUIET, asset_selection=ASSETS)
        assert run.success
        return {verdict.check_name: verdict for verdict in run.get_asset_check_evaluations()}

    return make


@pytest.mark.long
def test_the_conditions_of_the_gate_are_checks_of_the_report(materialized, make_version, connection):
    verdicts = materialized(make_version("v1.0.0"), base=always_buy, **{"v1.0.0": reads_news})
    assert verdicts.keys() == GATE_CHECKS.keys() and all(verdict.passed for verdict in verdicts.values())
    assert "all of it is above the required +0.0" in verdicts["improvement"].description
    same = "Pass: the reference is base, so the verdict is that of improvement: "
    assert verdicts["better_than_base"].description == verdicts["improvement"].description.replace("Pass: ", same)
    assert connection.execute('SELECT "decision" FROM babylon_rl.releases').fetchone() == ("pass",)


@pytest.mark.long
def test_a_broken_checkpoint_shows_which_condition_it_fails(materialized, make_version, connection):
    verdicts = materialized(make_version("v1.0.0"), base=reads_news, **{"v1.0.0": always_buy})
    failed = {name for name, verdict in verdicts.items() if not verdict.passed}
    certain = {"no_collapse", "improvement", "better_than_base"}  # the base is the reference
    assert certain <= failed <= certain | {"better_than_nothing", "enough_markets"}
    assert verdicts["no_collapse"].metadata["found"].value == "fail"
    assert connection.execute('SELECT "decision" FROM babylon_rl.releases').fetchone() == ("fail",)


def test_a_version_worse_than_its_parent_fails_kept_and_nothing_else_is_measured(materialized, make_version, connection, settings):
    make_version("v1.0.0")
    batch = make_version("v1.0.1", parent="v1.0.0")
    simulated(connection)
    verdicts = materialized(batch, base=hold, **{"v1.0.0": reads_fresh(0.0), "v1.0.1": hold})
    assert verdicts["kept"].description.startswith("Fail: v1.0.1 is worse than its parent in fresh training hours (v1.0.0; -")
    others = [verdict.description for name, verdict in verdicts.items() if name != "kept"]
    assert all(words.startswith("Nothing measured: v1.0.1 is worse than its parent") for words in others)


@pytest.mark.long
def test_a_version_that_is_not_here_fails_all_with_the_reason(materialized, make_version):
    verdicts = materialized(make_version("v1.0.0", base_model="dry"))
    assert not any(verdict.passed for verdict in verdicts.values())
    assert all("dry run" in verdict.description for verdict in verdicts.values())


def alone(babylon: Babylon) -> dict[str, dg.AssetCheckEvaluation]:
    """The verdicts of the report's checks in a run of them alone, which names no batch."""
    location = code_location(given(babylon))
    checks = {dg.AssetCheckKey(dg.AssetKey("benchmark_report"), name) for name in GATE_CHECKS}
    job = location.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(), asset_check_selection=checks)
    with dg.DagsterInstance.ephemeral() as instance:
        run = job.execute_in_process(instance=instance, run_config=QUIET)
    return {verdict.check_name: verdict for verdict in run.get_asset_check_evaluations()}


def test_an_inconclusive_gate_is_no_green_check(make_version, connection, database, settings):
    babylon = Babylon(settings, database, lambda: NOW)
    assert {verdict.description for verdict in alone(babylon).values()} == {"Nothing measured: no batch has been trained yet."}
    batch = make_version("v1.0.0")
    connection.execute(
        'INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson")'
        " VALUES (%s, %s, 'tiny-base', 'v1.0.0', '[]', '[]')",
        [batch, batch],
    )
    connection.commit()
    assert {verdict.description for verdict in alone(babylon).values()} == {f"Nothing measured: batch {batch} has no benchmark report."}
    words = "v1.0.0 earns $41.7 an hour more than base (paired 95 % interval -39.2 to +122.6): it holds the required +0.0"
    checks = [
        {"name": "improvement", "found": "inconclusive", "words": words},
        {"name": "no_collapse", "found": "pass", "words": "open_long in 60.0%"},
    ]
    report = BenchmarkReport(
        batch_id=batch, version="v1.0.0", reference="base", decision="inconclusive", reason=f"{words}.", markets=48, min_improvement=0.0,
        rows=[{"model": "v1.0.0", "improvement": 41.7, "checks": checks}], table_markdown="", data_version="1", plot_path=None,
        created_at=NOW,
    )  # fmt: skip
    write_report(connection, report)
    connection.commit()
    found = alone(babylon)
    assert found["no_collapse"].passed
    for name in ("improvement", "better_than_base"):
        assert (found[name].passed, found[name].severity) == (False, dg.AssetCheckSeverity.WARN)
        assert (found[name].description or "").startswith("Inconclusive: ") and (found[name].description or "").endswith(f"{words}.")
        assert found[name].metadata["decision"].value == f"inconclusive: {words}."
    assert found["improvement"].metadata["improvement"].value == 41.7
