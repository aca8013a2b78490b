"""The gate on scripts that stand for models, and on results made up: what is better passes, what is broken is refused with its numbers."""

from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.gate import BASE, CANDIDATE, FEWEST_MARKETS, STRATEGY, Comparison, GateVerdict, compare, decide
from babylon_rl.evaluation.play import MODEL, Player, scripted
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.simulation.actions import Invalid
from babylon_rl.market.simulation.agents import ONE_TICK, Choice, order
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl_tests.evaluation.results import compared, invalid, result
from babylon_rl_tests.evaluation.runs import rows_in

SNAPSHOTS = benchmark_snapshots(FEWEST_MARKETS)
FEW = 16  # enough to be refused in
RUNS, BETTER_RUNS = 60, 12
Chooses = Callable[[Sequence[str], int], Choice | Invalid]


class _Model:
    """Answers at once."""

    name, mandate = "stand-in", ONE_TICK

    def __init__(self, choose: Chooses) -> None:
        self._choose = choose

    def decide(self, seen):
        choice = self._choose([stock.ticker for stock in seen.stocks], seen.tick)
        return choice if isinstance(choice, Invalid) else order(choice, seen, 1500.0)


def model(choose: Chooses) -> Player:
    """A model by ``choose(markets, tick)``."""
    return Player("stand-in", "stand-in", MODEL, "one-tick", lambda *_: lambda agent_id, seed: _Model(choose))


strategy = cache(scripted)


@cache
def results(player: Player, markets: int = FEWEST_MARKETS) -> list[MarketResult]:
    return rows_in(player, SNAPSHOTS[:markets], concurrency=1)


def judged(candidate: Player, reference: str = "nothing", minimum: float = 0.0, markets: int = FEWEST_MARKETS) -> GateVerdict:
    return decide(comparison(candidate, reference, markets), minimum)


def comparison(candidate: Player, reference: str, markets: int = FEWEST_MARKETS) -> Comparison:
    played = {"v1.0.0": (CANDIDATE, results(candidate, markets)), reference: (BASE, results(strategy(reference), markets))}
    if reference != "nothing":
        played["nothing"] = (STRATEGY, results(strategy("nothing"), markets))
    return compare(played, "v1.0.0", reference, [f"The reference is {reference}."])


def found(verdict: GateVerdict) -> dict[str, str]:
    return {check.name: check.found for check in verdict.checks}


@pytest.mark.parametrize(("better", "worse"), [("balanced", "nothing"), ("balanced", "momentum"), ("conservative", "contrarian")])
def test_a_better_policy_passes_and_the_reason_has_the_numbers(better: str, worse: str) -> None:
    verdict = judged(strategy(better), worse)
    improvement = comparison(strategy(better), worse).row("v1.0.0").improvement
    assert verdict.decision == "pass" and set(found(verdict).values()) == {"pass"}
    assert verdict.reason.startswith(f"v1.0.0 earns ${improvement.mean:.1f} an hour more than {worse} over 48 unseen markets (paired 95 % ")
    assert f"{improvement.low:+.1f} to {improvement.high:+.1f}" in verdict.reason
    assert f"The reference is {worse}." in verdict.reason


@pytest.mark.parametrize(("worse", "better"), [("momentum", "balanced"), ("contrarian", "nothing")])
def test_a_worse_policy_fails(worse: str, better: str) -> None:
    verdict = judged(strategy(worse), better, markets=FEW)
    assert verdict.decision == "fail"
    assert "an hour less than" in verdict.reason and "none of it is above the required +0.0" in verdict.reason


@pytest.mark.parametrize(
    ("choose", "word"),
    [
        (lambda markets, tick: Choice("hold"), "hold in 100.0% of its 192 decisions"),
        (lambda markets, tick: Choice("buy", markets[0]), "buy in 100.0%"),
        (lambda markets, tick: Choice("sell", markets[tick % 3]), "sell in 100.0%"),
        (lambda markets, tick: Invalid("nonsense"), "something unusable in 100.0%"),
    ],
)
@pytest.mark.parametrize("reference", ["nothing", "contrarian"])
def test_a_collapse_into_one_action_fails_whatever_it_earns(choose: Chooses, word: str, reference: str) -> None:
    verdict = judged(model(choose), reference, minimum=-1e6, markets=FEW)
    assert verdict.decision == "fail" and found(verdict)["no_collapse"] == "fail"
    assert verdict.reason.startswith("v1.0.0 answers") and word in verdict.reason and "collapse" in verdict.reason


def test_more_invalid_answers_than_the_reference_fail() -> None:
    def sometimes_nonsense(markets: Sequence[str], tick: int) -> Choice | Invalid:
        return Invalid("nonsense") if tick == 0 else Choice("buy" if tick % 2 else "sell", markets[0])

    verdict = judged(model(sometimes_nonsense), "contrarian", markets=FEW)
    assert verdict.decision == "fail"
    assert verdict.reason.startswith("Invalid answers have become more: v1.0.0 8.3%, contrarian 0.0%.")


def test_as_many_invalid_answers_as_the_reference_are_no_fault() -> None:
    ours = [result(index, 100.0 + index, **invalid(1)) for index in range(16)]
    theirs = [result(index, 1.0 * (index % 3), **invalid(2 if index == 3 else 1)) for index in range(16)]
    assert found(decide(compared(ours, theirs)))["valid_answers"] == "pass"


@pytest.mark.long
def test_who_is_no_better_hardly_ever_passes() -> None:
    """Equal policies that earn money, so that doing nothing stops neither: the gate lets at most 2.5 % through over all looks."""
    passed = better = 0
    for seed in range(RUNS):
        rng = Random(seed)
        ours, theirs = ([rng.gauss(100, 90) for _ in range(96)] for _ in range(2))
        passed += any(decide(compared(ours[:size], theirs[:size], analyses=3)).decision == "pass" for size in (48, 96))
        if seed < BETTER_RUNS:
            better += decide(compared([usd + 90 for usd in ours[:48]], theirs[:48], analyses=3)).decision == "pass"
    assert passed <= 0.025 * RUNS and better >= 0.9 * BETTER_RUNS


def test_an_interval_that_holds_the_requirement_is_inconclusive_and_says_how_many_markets_are_needed() -> None:
    improvement = comparison(strategy("balanced"), "nothing").row("v1.0.0").improvement
    verdict = judged(strategy("balanced"), "nothing", minimum=improvement.mean - 5)
    assert verdict.decision == "inconclusive"
    assert "it holds the required" in verdict.reason and "4 of 5 benchmarks of" in verdict.reason
    assert "not be expected" in judged(strategy("balanced"), "nothing", minimum=improvement.mean + 5).reason


def test_the_required_improvement_is_what_the_lower_end_must_exceed() -> None:
    improvement = comparison(strategy("balanced"), "nothing").row("v1.0.0").improvement
    decisions = [judged(strategy("balanced"), "nothing", minimum=bound).decision for bound in (improvement.low - 0.01, improvement.low)]
    assert decisions == ["pass", "inconclusive"]
    assert judged(strategy("balanced"), "nothing", minimum=improvement.high).decision == "fail"


def test_a_few_markets_decide_no_pass_however_clear_they_are() -> None:
    clear = [200.0 + index for index in range(FEWEST_MARKETS)]
    assert decide(compared(clear)).decision == "pass"
    verdict = decide(compared(clear[:-1]))
    assert verdict.decision == "inconclusive" and found(verdict)["improvement"] == "pass"
    assert "a pass needs 48 markets at least (BENCHMARK_MARKETS)" in verdict.reason


def test_who_is_shown_to_lose_does_not_pass_by_losing_less_than_the_deployed_version() -> None:
    losing = [-40.0 - index for index in range(24)]
    verdict = decide(compared(losing, deployed=[-200.0 + 3 * index for index in range(24)]))
    assert verdict.decision == "fail"
    assert found(verdict) | {"improvement": "pass", "better_than_nothing": "fail", "better_than_base": "fail"} == found(verdict)
    assert "is shown to earn less than doing nothing" in verdict.reason and "doing nothing is the better choice" in verdict.reason


def test_who_is_not_shown_to_earn_more_than_doing_nothing_does_not_pass_by_beating_a_loser() -> None:
    for shift in (0, 10):
        around_zero = [(-1) ** index * 60.0 - 5 + shift for index in range(24)]
        verdict = decide(compared(around_zero, deployed=[value - 100 - index for index, value in enumerate(around_zero)]))
        assert verdict.decision == "inconclusive" and found(verdict)["improvement"] == "pass"
        assert "is not shown to earn more than doing nothing" in verdict.reason


def test_who_cannot_be_played_is_not_compared() -> None:
    played = {"nothing": (BASE, results(strategy("nothing"), FEW))}
    verdict = decide(compare(played, None, None, ["v1.0.0 could not be played here: its checkpoint is gone."]))
    assert verdict == GateVerdict("not_compared", "v1.0.0 could not be played here: its checkpoint is gone.")


def test_only_the_same_markets_can_be_compared() -> None:
    one, other = results(strategy("balanced"), FEW), results(strategy("nothing"), FEW)
    for broken in (other[1:], [*other[1:], other[0]]):
        with pytest.raises(MarketError, match="same markets"):
            compare({"a": (BASE, one), "b": (BASE, broken)}, "a", "b")
    with pytest.raises(MarketError, match="two at least"):
        compare({"a": (BASE, one[:1]), "b": (BASE, other[:1])}, "a", "b")
