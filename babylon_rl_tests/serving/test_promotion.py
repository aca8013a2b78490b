"""A version that passed the gate is confirmed in markets of its own before it is rolled out without a person."""

from typing import Any

import pytest

from babylon_rl.cli.demo_stages import Demo, end_trial, release
from babylon_rl.errors import ModelUnavailable
from babylon_rl.evaluation.gate import FAIL, PASS
from babylon_rl.evaluation.snapshots import benchmark_snapshots, confirmation_snapshots, require_unseen
from babylon_rl.market.simulation.games import AMOUNTS, ONE_TICK_GAME, POSTS
from babylon_rl.serving.promotion import promote, read_guards
from babylon_rl.serving.releases import deploy, rollback
from babylon_rl.store.benchmarks import begin_confirmation, read_confirmations
from babylon_rl.store.releases import ReleaseAuthor, read_events, read_rollouts, read_routing
from babylon_rl_tests.evaluation.conftest import NOW
from babylon_rl_tests.evaluation.endpoint import Endpoint, alternates, at_size, endpoint, hold, reads_news, reads_wrongly
from babylon_rl_tests.serving.live_rows import insert_calls

MARKETS = 24
HOURS = ["2025-03-03T00:00"]  # of the demo


@pytest.fixture
def promoted(connection, settings):
    """``promoted(version, served, decision)``: the sentence of one promotion."""

    def run(version: str, served: Endpoint, decision: str = PASS, **changes: Any) -> str:
        changed = settings.model_copy(update={"auto_promote": True, "confirmation_markets": MARKETS} | changes)
        return promote(connection, version, decision, changed, lambda said: None, clock=lambda: NOW, serving=served.serving)

    return run


def states(connection) -> list[tuple[str, str]]:
    return [(one.version, one.state) for one in reversed(read_rollouts(connection))]


def test_without_automatic_promotion_a_pass_makes_a_candidate_and_nothing_plays(promoted, make_version, connection):
    make_version("v1.0.0")
    with endpoint(base=hold) as served:
        assert "v1.0.0 is a candidate: `babylon-rl models deploy v1.0.0`" in promoted("v1.0.0", served, auto_promote=False)
        assert promoted("v1.0.0", served, auto_promote=False) == "v1.0.0 is candidate already."
    assert states(connection) == [("v1.0.0", "candidate")] and served.asked == {}


@pytest.mark.slow
def test_what_did_not_pass_stays_as_it_is(promoted, make_version, connection):
    make_version("v1.0.0")
    with endpoint(base=hold) as served:
        assert promoted("v1.0.0", served, FAIL) == "v1.0.0 is not released: its gate's decision is fail."
    assert states(connection) == [] and read_confirmations(connection) == []


@pytest.mark.long
def test_a_confirmed_version_starts_at_the_first_step_and_the_two_alone_play(promoted, make_version, connection):
    make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        said = promoted("v1.0.0", served)
    assert said.startswith("v1.0.0 is rolling at 1 % of agents: confirmed: +")
    ticks = benchmark_snapshots(1)[0].scenario.ticks
    assert served.asked == {"base": MARKETS * ticks, "v1.0.0": MARKETS * ticks}
    (test,) = read_confirmations(connection)
    assert (test.number, test.reference, test.first_market, test.markets) == (1, None, 0, MARKETS) and test.confirmed
    assert read_events(connection)[-1].who == "automation"


@pytest.mark.long
def test_a_version_that_is_no_better_in_fresh_markets_stays_a_candidate(promoted, make_version, connection):
    make_version("v1.0.0")
    with endpoint(base=reads_news, **{"v1.0.0": reads_wrongly}) as served:
        said = promoted("v1.0.0", served)
    assert said.startswith("v1.0.0 is a candidate, and a person decides: not confirmed: -")
    assert states(connection) == [("v1.0.0", "candidate")] and not read_confirmations(connection)[0].confirmed


@pytest.mark.long
def test_each_test_has_markets_of_its_own_and_the_deployed_version_as_rival(promoted, make_version, connection, settings):
    make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news, "v1.0.1": reads_news}) as served:
        promoted("v1.0.0", served, rollout_steps=(100.0,))
        assert read_routing(connection).deployed == "v1.0.0"
        make_version("v1.0.1", parent="v1.0.0")
        promoted("v1.0.1", served)
    _, second = read_confirmations(connection)
    assert (second.reference, second.first_market) == ("v1.0.0", MARKETS)
    assert second.improvement == 0 and not second.confirmed  # they play alike
    assert second.level > 0.001  # the first discovery earned what it spends
    fresh = confirmation_snapshots(0, 2 * MARKETS)
    require_unseen([*fresh, *benchmark_snapshots(96)])  # no market twice, none of training's


@pytest.mark.long
def test_an_interrupted_confirmation_goes_on_in_its_markets(promoted, make_version, connection):
    make_version("v1.0.0")
    with endpoint(base=alternates, **{"v1.0.0": reads_news}) as served:
        served.breaks_after = 200
        with pytest.raises(ModelUnavailable):
            promoted("v1.0.0", served)
        (begun,) = read_confirmations(connection)
        assert begun.ended_at is None and states(connection) == []
        served.breaks_after = None
        promoted("v1.0.0", served, confirmation_markets=48)
    (test,) = read_confirmations(connection)
    assert (test.level, test.markets) == (begun.level, MARKETS) and test.confirmed


def test_a_test_whose_rival_is_not_registered_any_more_leaves_a_candidate(promoted, make_version, connection):
    make_version("v1.0.1")
    begin_confirmation(connection, "v1.0.1", "v1.0.0", MARKETS, lambda earlier: 0.01, NOW)
    with endpoint(base=hold) as served:
        said = promoted("v1.0.1", served)
    why = "v1.0.1 was not confirmed: v1.0.0, which its test began against, is not registered any more."
    assert said == f"v1.0.1 is a candidate, and a person decides: {why}" and served.asked == {}


def test_a_version_of_another_prompt_than_the_deployed_ones_waits_for_a_person_with_the_commands(promoted, make_version, connection):
    make_version("v1.0.0", status="deployed", game=ONE_TICK_GAME)
    make_version("v1.0.1", parent="v1.0.0", game=POSTS)
    with endpoint(base=hold) as served:
        said = promoted("v1.0.1", served)
    why = "v1.0.1 was not confirmed: it was trained in posts, and v1.0.0, which is deployed, in one-tick."
    assert said.startswith(f"v1.0.1 is a candidate, and a person decides: {why}")
    assert "--model v1.0.1 --model v1.0.0 --game posts` (or one-tick), then `babylon-rl models deploy v1.0.1`" in said
    assert why in read_events(connection)[-1].why and served.asked == {} and read_confirmations(connection) == []


@pytest.mark.long
def test_a_version_of_another_game_with_the_same_prompt_is_confirmed_in_its_own_game(promoted, make_version, connection):
    make_version("v1.0.0", status="deployed", game=POSTS)
    make_version("v1.0.1", parent="v1.0.0", game=AMOUNTS)
    with endpoint(base=hold, **{"v1.0.0": at_size(alternates), "v1.0.1": at_size(reads_news)}) as served:
        assert promoted("v1.0.1", served).startswith("v1.0.1 is rolling at 1 % of agents: confirmed: +")
    (test,) = read_confirmations(connection)
    assert (test.reference, test.confirmed) == ("v1.0.0", True)
    assert served.asked.keys() == {"v1.0.0", "v1.0.1"}


@pytest.mark.long
def test_a_version_waits_while_another_is_on_trial_and_one_rolled_back_never_returns(promoted, make_version, connection, settings):
    for version in ("v1.0.0", "v1.0.1"):
        make_version(version)
    with endpoint(base=alternates, **{"v1.0.0": reads_news, "v1.0.1": reads_news}) as served:
        promoted("v1.0.0", served)
        assert "v1.0.1 is a candidate, and v1.0.0 is on trial" in promoted("v1.0.1", served)
        rollback(connection, settings, ReleaseAuthor("tester", "worse", NOW))
        assert promoted("v1.0.0", served) == "v1.0.0 is rolled back already."
    assert deploy(connection, "v1.0.1", settings, ReleaseAuthor("tester", "by hand", NOW)).state == "rolling"


@pytest.mark.long
def test_the_demo_releases_what_was_promoted_and_nothing_else(promoted, make_version, connection, database, settings, capsys):
    state = Demo(settings, database, windows=2, seed=0)
    for version in ("v1.0.0", "v1.0.1"):
        make_version(version)
    with endpoint(base=alternates, **{"v1.0.0": reads_news, "v1.0.1": reads_wrongly}) as served:
        # What is at all agents already is not played again; cli/test_demo_gateway.py has one that is on trial.
        promoted("v1.0.0", served, rollout_steps=(100.0,))
        assert release(state, "v1.0.0", HOURS) and read_routing(connection).deployed == "v1.0.0"
        assert "v1.0.0 released at 100 %" in capsys.readouterr().err
        promoted("v1.0.1", served, rollout_steps=(100.0,))
    assert not release(state, "v1.0.1", HOURS) and not release(state, None, HOURS)
    assert "v1.0.1 is not released; v1.0.0 stays in front of agents" in capsys.readouterr().err
    assert release(state, "v1.0.0", HOURS), "a finished demo shows the same again"
    rollback(connection, settings, ReleaseAuthor("tester", "worse", NOW))
    assert read_rollouts(connection)[-1].percentage == 100 and not release(state, "v1.0.0", HOURS)


def test_the_demo_takes_a_version_back_whose_guards_fail(make_version, connection, database, settings):
    make_version("v1.0.0")
    state = Demo(settings, database, windows=2, seed=0)
    trial = deploy(connection, "v1.0.0", settings, ReleaseAuthor("tester", "a half", NOW), percentage=50)
    insert_calls(connection, "v1.0.0", NOW, ["agent-1"], calls=200, failed=100)
    end_trial(state, connection, trial, read_guards(connection, trial, settings))
    assert states(connection) == [("v1.0.0", "rolled_back")] and read_routing(connection).deployed is None
    assert read_events(connection)[-1].why.startswith("errors fail (100 of 200")
    assert not release(state, "v1.0.0", HOURS)
