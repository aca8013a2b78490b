"""The gate on scripts that stand for models: what is better passes, what is broken is refused with its numbers."""

from collections.abc import Callable, Sequence

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.comparison import BASE, CANDIDATE, Comparison, compare
from babylon_rl.evaluation.gate import Verdict, decide
from babylon_rl.evaluation.markets import Contestant, play_benchmark
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.agents import Decision
from babylon_rl.market.play import Ask, Call
from babylon_rl.store.benchmarks import MarketResult

SNAPSHOTS = benchmark_snapshots(16)
Choice = Callable[[Sequence[str], int], Decision]


def model(choose: Choice) -> Contestant:
    """A model that answers at once: ``choose(markets, tick)``."""

    def ask(items):
        return [(choose(seen.markets, tick), Call("stand-in", [], "")) for _, seen, tick in items]

    answers: Ask = ask
    return Contestant("stand-in", answers)


def results(contestant: Contestant) -> list[MarketResult]:
    return play_benchmark(contestant, SNAPSHOTS, concurrency=1)


def judged(candidate: Contestant, reference: str = "nothing", minimum: float = 0.0) -> Verdict:
    return decide(comparison(candidate, reference), minimum)


def comparison(candidate: Contestant, reference: str) -> Comparison:
    played = {"v1.0.0": (CANDIDATE, results(candidate)), reference: (BASE, results(Contestant(reference)))}
    return compare(played, "v1.0.0", reference, [f"The reference is {reference}."])


@pytest.mark.parametrize(("better", "worse"), [("balanced", "nothing"), ("balanced", "momentum"), ("conservative", "contrarian")])
def test_a_better_policy_passes_and_the_reason_has_the_numbers(better: str, worse: str) -> None:
    verdict = judged(Contestant(better), worse)
    improvement = comparison(Contestant(better), worse).standing("v1.0.0").improvement
    assert verdict.decision == "pass"
    assert verdict.reason.startswith(f"v1.0.0 earns ${improvement.mean:.1f} an hour more than {worse} over 16 unseen markets (paired 95 % ")
    assert f"{improvement.low:+.1f} to {improvement.high:+.1f}" in verdict.reason
    assert f"The reference is {worse}." in verdict.reason


@pytest.mark.parametrize(("worse", "better"), [("momentum", "balanced"), ("contrarian", "nothing")])
def test_a_worse_policy_fails(worse: str, better: str) -> None:
    verdict = judged(Contestant(worse), better)
    assert verdict.decision == "fail"
    assert "an hour less than" in verdict.reason and "none of it is above the required +0.0" in verdict.reason


@pytest.mark.parametrize(
    ("choose", "word"),
    [
        (lambda markets, tick: Decision("hold"), "hold in 100.0% of its 192 decisions"),
        (lambda markets, tick: Decision("buy", markets[0]), "buy in 100.0%"),
        (lambda markets, tick: Decision("sell", markets[tick % 4]), "sell in 100.0%"),
        (lambda markets, tick: Decision("hold", invalid="nonsense"), "something unusable in 100.0%"),
    ],
)
@pytest.mark.parametrize("reference", ["nothing", "contrarian"])
def test_a_collapse_into_one_action_fails_whatever_it_earns(choose: Choice, word: str, reference: str) -> None:
    verdict = judged(model(choose), reference, minimum=-1e6)
    assert verdict.decision == "fail"
    assert word in verdict.reason and "collapse" in verdict.reason


def test_more_invalid_answers_than_the_reference_fail() -> None:
    def sometimes_nonsense(markets: Sequence[str], tick: int) -> Decision:
        if tick == 0:
            return Decision("hold", invalid="nonsense")
        return Decision("buy" if tick % 2 else "sell", markets[0])

    verdict = judged(model(sometimes_nonsense), "contrarian")
    assert verdict.decision == "fail"
    assert verdict.reason.startswith("Invalid answers have become more: v1.0.0 8.3%, contrarian 0.0%.")


def test_an_interval_that_holds_the_requirement_is_inconclusive_and_says_how_many_markets_are_needed() -> None:
    improvement = comparison(Contestant("balanced"), "nothing").standing("v1.0.0").improvement
    verdict = judged(Contestant("balanced"), "nothing", minimum=improvement.mean - 5)
    assert verdict.decision == "inconclusive"
    assert "it holds the required" in verdict.reason and "4 of 5 benchmarks of" in verdict.reason
    assert "not be expected" in judged(Contestant("balanced"), "nothing", minimum=improvement.mean + 5).reason


def test_the_required_improvement_is_what_the_lower_end_must_exceed() -> None:
    improvement = comparison(Contestant("balanced"), "nothing").standing("v1.0.0").improvement
    decisions = [judged(Contestant("balanced"), "nothing", minimum=bound).decision for bound in (improvement.low - 0.01, improvement.low)]
    assert decisions == ["pass", "inconclusive"]
    assert judged(Contestant("balanced"), "nothing", minimum=improvement.high).decision == "fail"


def test_a_pass_that_still_loses_money_says_so() -> None:
    verdict = judged(Contestant("momentum"), "contrarian")
    assert verdict.decision == "pass"
    assert "It still loses $" in verdict.reason


def test_who_cannot_be_played_is_not_compared() -> None:
    played = {"nothing": (BASE, results(Contestant("nothing")))}
    verdict = decide(compare(played, None, None, ["v1.0.0 could not be played here: its checkpoint is gone."]))
    assert verdict == Verdict("not_compared", "v1.0.0 could not be played here: its checkpoint is gone.")


def test_only_the_same_markets_can_be_compared() -> None:
    one, other = results(Contestant("balanced")), results(Contestant("nothing"))
    for broken in (other[1:], [*other[1:], other[0]]):
        with pytest.raises(MarketError, match="same markets"):
            compare({"a": (BASE, one), "b": (BASE, broken)}, "a", "b")
    with pytest.raises(MarketError, match="two at least"):
        compare({"a": (BASE, one[:1]), "b": (BASE, other[:1])}, "a", "b")
