"""Versions of a training service in the gate: they and their base are asked there, and nothing is served here for them."""

import threading
import time

import pytest
from pydantic import SecretStr

from babylon_rl.cli.benchmark_players import players_named
from babylon_rl.errors import ModelUnavailable
from babylon_rl.evaluation.benchmark import ModelSource, evaluate_batch, gate_rows
from babylon_rl.evaluation.leaderboard import leaderboard
from babylon_rl.evaluation.play import benchmark_results
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.training.backends.protocol import ModelAddress
from babylon_rl_tests.evaluation.conftest import NOW
from babylon_rl_tests.evaluation.endpoint import alternates, endpoint, hold, reads_news
from babylon_rl_tests.evaluation.runs import small_markets
from babylon_rl_tests.training.serverless_stand_in import Service, standing_in
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer
from babylon_rl_tests.training.serverless_stand_in.chat import Chat
from babylon_rl_tests.training.serverless_stand_in.http import WRONG_KEY

pytestmark = pytest.mark.slow

BASE = "OpenPipe/Qwen3-14B-Instruct"


def keyed(settings, service, key="x"):
    """With a key, and the service where this one is."""
    return settings.model_copy(update={"wandb_api_key": key and SecretStr(key), "serverless_base_url": service.url})


@pytest.fixture
def evaluate(connection):
    def run(batch, settings, serving):
        return evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=serving)

    return run


@pytest.mark.long
def test_a_version_at_a_service_passes_over_its_base_there(evaluate, make_version, settings, connection):
    with endpoint(**{"v1.0.0@service": reads_news, BASE: alternates}) as service, endpoint() as here:
        batch, remote = make_version("v1.0.0", base_model=BASE, service=service.url), keyed(settings, service)
        report = evaluate(batch, remote, here.serving)
        asked = dict(service.asked)
        assert evaluate(batch, remote, here.serving) == report and service.asked == asked
    assert (report.decision, report.reference, here.starts) == ("pass", "base", 0)
    assert asked == {"v1.0.0@service": 48 * 12, BASE: 48 * 12}
    board = leaderboard(connection, remote)
    assert {"v1.0.0", "base"} <= {line.row.player for line in board.lines} and board.unranked == {}


@pytest.mark.long
def test_a_deployed_version_of_another_line_is_asked_where_it_is(evaluate, make_version, settings):
    with endpoint(**{"v1.0.0@service": reads_news}) as service, endpoint(base=alternates, **{"v1.0.1": hold}) as here:
        make_version("v1.0.0", base_model=BASE, service=service.url, status="deployed")
        remote = keyed(settings, service).model_copy(update={"min_improvement": 1e6})
        report = evaluate(make_version("v1.0.1"), remote, here.serving)
    assert (report.reference, report.decision) == ("v1.0.0", "fail")
    assert (set(service.asked), set(here.asked)) == ({"v1.0.0@service"}, {"base", "v1.0.1"})


def test_no_more_is_asked_at_a_time_when_one_of_several_models_is_at_a_service(connection, settings):
    lock, running, most = threading.Lock(), [0], [0]

    def counted(prompt, markets):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)  # others come meanwhile, if they may
        with lock:
            running[0] -= 1
        return hold(prompt, markets)

    with endpoint(m=counted) as service, endpoint(base=counted, **{"v1.0.0": counted}) as here:
        sources = [ModelSource(name, "base", name) for name in ("base", "v1.0.0")]
        sources.append(ModelSource("v1.0.1", "base", "v1.0.1", service=ModelAddress(service.url, "m", key="key")))
        results = gate_rows(
            connection, settings, sources, benchmark_snapshots(3), len, clock=lambda: NOW, serving=here.serving, concurrency=1
        )
        assert [len(rows) for rows in results.values()] == [3, 3, 3] and most == [1]
        assert gate_rows(connection, settings, [], [], len, clock=lambda: NOW, serving=here.serving) == {}


@pytest.mark.long
def test_the_service_is_asked_with_its_key_and_without_one_nothing_is_compared(evaluate, make_version, settings, connection):
    tokenizer = base_tokenizer()
    with standing_in(Service(len(tokenizer)), Chat(tokenizer)) as service, endpoint() as here:
        batch = make_version("v1.0.0", base_model=BASE, service=service.url)
        report = evaluate(batch, keyed(settings, service, None), here.serving)
        assert report.decision == "not_compared" and "there is no WANDB_API_KEY to ask v1.0.0@service with" in report.reason
        with pytest.raises(ModelUnavailable, match="401"):
            evaluate(batch, keyed(settings, service, WRONG_KEY), here.serving)
        # The key is not sent to a host that only the checkpoint names.
        asked = len(service.service.requests)
        report = evaluate(batch, settings.model_copy(update={"wandb_api_key": SecretStr("right")}), here.serving)
        assert (
            report.decision == "not_compared"
            and "is no address of Weights & Biases" in report.reason
            and len(service.service.requests) == asked
        )
        report = evaluate(batch, keyed(settings, service, "right"), here.serving)
    assert report.decision in ("fail", "inconclusive") and report.rows[0]["invalid"] == 0
    kept = connection.execute('SELECT DISTINCT "model" FROM babylon_rl.benchmark_results ORDER BY 1').fetchall()
    assert kept == [("base",), ("v1.0.0",)]


def test_benchmark_run_asks_it_there_too(make_version, settings, database, tmp_path):
    with endpoint(**{"v1.0.0@service": hold}) as service, endpoint() as here:
        make_version("v1.0.0", base_model=BASE, service=service.url)
        chosen = keyed(settings, service).model_copy(update={"database_url": SecretStr(database.url)})
        with players_named(["v1.0.0"], chosen, ONE_TICK_GAME, serving=here.serving) as players:
            runs = benchmark_results(players, small_markets(1), tmp_path / "r")
    assert [result.agent_id for result in runs.results] == ["v1.0.0"]
    assert service.asked == {"v1.0.0@service": 12} and here.starts == 0
