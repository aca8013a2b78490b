"""The asset of the report, its checks and the release, in Dagster, on results that are stored already."""

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.checks_batches import GATE_CHECKS
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.evaluation.benchmark import evaluate_batch
from babylon_rl_tests.evaluation.conftest import NOW
from babylon_rl_tests.evaluation.endpoint import always_buy, endpoint, reads_news

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
    assert verdicts["better_than_base"].description == "That is the reference: see improvement."
    assert connection.execute('SELECT "decision" FROM babylon_rl.releases').fetchone() == ("pass",)


@pytest.mark.long
def test_a_broken_checkpoint_shows_which_condition_it_fails(materialized, make_version, connection):
    verdicts = materialized(make_version("v1.0.0"), base=reads_news, **{"v1.0.0": always_buy})
    failed = {name for name, verdict in verdicts.items() if not verdict.passed}
    assert {"no_collapse", "improvement"} <= failed <= {"no_collapse", "improvement", "better_than_nothing", "enough_markets"}
    assert verdicts["no_collapse"].metadata["found"].value == "fail"
    assert connection.execute('SELECT "decision" FROM babylon_rl.releases').fetchone() == ("fail",)


@pytest.mark.long
def test_a_version_that_is_not_here_fails_all_with_the_reason(materialized, make_version):
    verdicts = materialized(make_version("v1.0.0", base_model="dry"))
    assert not any(verdict.passed for verdict in verdicts.values())
    assert all("dry run" in verdict.description for verdict in verdicts.values())
