"""What the validator says of snapshots that were cut, bent or made up; one change each, one sentence each."""

import copy
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file import benchmark_scenario, decode, encode, from_scenario, to_scenario, validate
from babylon_rl.market.simulation.config import preset

GAME = Path(__file__).parent.parent / "data" / "game_benchmark_snapshot.json.gz"
Document = dict[str, Any]


def ours() -> Document:
    document: Document = msgspec.json.decode(encode(from_scenario(benchmark_scenario(preset("quick", edition="held-out", seed=0)))))
    return document


OURS, GAMES = ours(), msgspec.json.decode(gzip.decompress(GAME.read_bytes()))["snapshot"]


def checked(document: Document) -> tuple[list[str], list[str]]:
    return validate(decode(msgspec.json.encode(document)))


def stock(document: Document, tick: int = 4) -> Document:
    found: Document = document["ticks"][tick]["state"]["perpetualMarkets"][0]
    return found


def asked(document: Document, tick: int = 4) -> Document:
    found: Document = document["ticks"][tick]["state"]["predictionMarkets"][0]
    return found


def resolve_wrongly(document: Document) -> None:
    market = asked(document, 29)
    yes = 0 if document["groundTruth"]["marketOutcomes"][market["id"]] else 1
    market.update(resolved=True, yesPrice=yes, noPrice=1 - yes)


def flip_outcome(document: Document) -> None:
    truth = document["groundTruth"]["marketOutcomes"]
    resolved = next(market["id"] for market in document["ticks"][29]["state"]["predictionMarkets"] if market["resolved"])
    truth[resolved] = not truth[resolved]


def reopen(document: Document) -> None:
    market = next(market for market in document["ticks"][28]["state"]["predictionMarkets"] if market["resolved"])
    last = next(other for other in document["ticks"][29]["state"]["predictionMarkets"] if other["id"] == market["id"])
    last["resolved"] = False


def history(document: Document) -> list[Document]:
    found: list[Document] = next(iter(document["groundTruth"]["priceHistory"].values()))
    return found


def event(document: Document, kind: str) -> Document:
    found: Document = next(event for tick in document["ticks"] for event in tick["events"] if event["type"] == kind)
    return found


ERRORS: dict[str, tuple[Callable[[Document], Any], str]] = {
    "truncated": (lambda d: d["ticks"].__delitem__(slice(20, None)), "cut off: 20 ticks are there, 30 belong"),
    "no ticks": (lambda d: d["ticks"].clear(), "cut off: 0 ticks"),
    "too many ticks": (lambda d: d.update(duration=1740), "30 ticks, 29 belong"),
    "a tick missing inside": (lambda d: d["ticks"].pop(7), "not consecutive: number 8 comes where 7 belongs"),
    "two ticks swapped": (lambda d: d["ticks"].insert(3, d["ticks"].pop(4)), "not consecutive"),
    "state of another tick": (lambda d: d["ticks"][3]["state"].update(tick=9), "ends with the state of tick 9, not 4"),
    "starts late": (lambda d: d["initialState"].update(tick=1), "first state is that of tick 1"),
    "time stands still": (lambda d: d["ticks"][3].update(timestamp=d["ticks"][2]["timestamp"]), "stands still or runs backwards at tick 3"),
    "no length": (lambda d: d.update(tickInterval=0), "in ticks of 0 s"),
    "price of zero": (lambda d: stock(d).update(price=0), "costs 0.0 $ at tick 5"),
    "negative price": (lambda d: stock(d).update(price=-3.5), "a price is positive"),
    "impossible probability": (lambda d: asked(d).update(yesPrice=1.2, noPrice=-0.2), "outside 0 to 1"),
    "yes and no": (lambda d: asked(d).update(noPrice=0.01), "is not 1 together"),
    "negative shares": (lambda d: asked(d).update(yesShares=-1), "negative yes shares"),
    "negative volume": (lambda d: asked(d).update(totalVolume=-1), "negative total volume"),
    "negative interest": (lambda d: stock(d).update(openInterest=-1), "negative volume or open interest"),
    "resolved before created": (lambda d: asked(d).update(resolveAt=0), "not after it was created"),
    "question twice": (
        lambda d: d["ticks"][2]["state"]["predictionMarkets"].append(dict(asked(d, 2))),
        "is there twice at tick 3",
    ),
    "stock twice": (lambda d: d["ticks"][2]["state"]["perpetualMarkets"].append(dict(stock(d, 2))), "is there twice at tick 3"),
    "agent twice": (
        lambda d: d["initialState"]["agents"].append(d["initialState"]["agents"][0]),
        "agent 'agent-1' is there twice at tick 0",
    ),
    "question gone": (lambda d: d["ticks"][9]["state"]["predictionMarkets"].pop(0), "missing from the state of tick 10"),
    "stock gone": (lambda d: d["ticks"][9]["state"]["perpetualMarkets"].pop(), "stocks of tick 10 are not those of the tick before"),
    "reopened": (reopen, "is open again at tick 30"),
    "resolved the other way": (flip_outcome, "the ground truth says"),
    "no outcome": (lambda d: d["groundTruth"]["marketOutcomes"].popitem(), "has no outcome of question"),
    "unknown outcome": (lambda d: d["groundTruth"]["marketOutcomes"].update(Q1=True), "an outcome of 'Q1', which is no question"),
    "no history": (lambda d: d["groundTruth"]["priceHistory"].popitem(), "has no price history of stock"),
    "unknown history": (lambda d: d["groundTruth"]["priceHistory"].update(XYZ=[]), "a price history of 'XYZ', which is no stock"),
    "contradictory history": (lambda d: history(d)[12].update(price=1), "has 1.0 at tick 12, the state says"),
    "short history": (lambda d: history(d).__delitem__(slice(5, None)), "has 5 points, not one for each of 30 ticks"),
    "history beyond the end": (lambda d: history(d)[30].update(tick=99), "there is no such tick"),
    "unknown target": (lambda d: d["groundTruth"]["optimalActions"][0].update(target="X"), "optimal action trades 'X'"),
    "action after the end": (lambda d: d["groundTruth"]["optimalActions"][0].update(tick=31), "optimal action is at tick 31"),
    "chance after the end": (lambda d: d["groundTruth"]["socialOpportunities"][0].update(tick=-1), "opportunity is at tick -1"),
    "event about nothing": (lambda d: event(d, "price:updated")["data"].update(ticker="X"), "moves the price of 'X'"),
    "event with a list": (lambda d: event(d, "price:updated")["data"].update(ticker=[]), "moves the price of []"),
    "event of another price": (lambda d: event(d, "price:updated")["data"].update(newPrice=1), "the state after it says"),
    "trade in nothing": (lambda d: event(d, "market:trade")["data"].pop("marketId"), "trades None, which is no question"),
    "config of another market": (lambda d: d["config"].update(perps=2), "config says 2 stocks, it has 3"),
    "config out of range": (lambda d: d["config"].update(minutes=-1), "A scenario cannot be made so"),
    "config of another shape": (lambda d: d["config"].update(minutes="x"), "config cannot be read"),
    "another seed": (lambda d: d.update(seed=1), "Its config says 0 as its seed"),
    "config alone": (lambda d: d.pop("generator"), "a config without its generator"),
    "no id": (lambda d: d.update(id=""), "has no id"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_a_fault_is_an_error_in_a_sentence(name: str) -> None:
    change, said = ERRORS[name]
    document = copy.deepcopy(OURS)
    change(document)
    errors, _ = checked(document)
    assert any(said in error for error in errors), errors
    assert all(error.endswith(".") and "\n" not in error for error in errors) and len(errors) < 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(createdAt=5), "It was created at 5"),
        (lambda d: d["ticks"][4].update(timestamp=d["ticks"][4]["timestamp"] + 1), "by the interval it is"),
        (lambda d: d["ticks"][4]["events"][0].update(timestamp=1), "An event of tick 4 is dated 1"),
        (lambda d: d["ticks"][4]["events"][0].update(type="group:created"), "of type 'group:created', which is passed over"),
        (lambda d: stock(d).update(fundingRate=2), "it is taken as 0"),
        (lambda d: history(d)[3].update(timestamp=history(d)[3]["timestamp"] + 1), "dates tick 3"),
    ],
)
def test_an_oddity_is_a_warning(change: Callable[[Document], Any], said: str) -> None:
    document = copy.deepcopy(OURS)
    change(document)
    errors, warnings = checked(document)
    assert errors == [] and any(said in warning for warning in warnings), warnings


def test_many_cases_of_one_fault_are_one_sentence() -> None:
    document = copy.deepcopy(OURS)
    for tick in document["ticks"]:
        tick["state"]["perpetualMarkets"][0]["price"] = -1
    errors, _ = checked(document)
    assert next(error for error in errors if "costs -1.0 $ at tick 1" in error).endswith("(30 cases like it in all).")


def test_the_games_own_snapshot_has_faults_that_are_warnings() -> None:
    errors, warnings = checked(GAMES)
    assert errors == []
    told = " ".join(warnings)
    for said in (
        "5 of 8 markets never move: market-0, market-1, market-2, market-3, market-4",
        "30 of 30 points in the price history of BTC are dated 0",
        "Optimal actions name no side and no budget",
        "its shares are those sold, not a maker's",
        "An event of tick 1 is dated 1763200800000",
        "market-0 is still open at tick 30",
    ):
        assert said in told


def test_a_contradiction_in_the_games_own_snapshot_is_an_error() -> None:
    for change, said in (
        (resolve_wrongly, "the ground truth says"),
        (lambda d: d["groundTruth"]["priceHistory"]["ETH"][9].update(price=1), "price history of ETH has 1.0 at tick 9, the state says"),
    ):
        document = copy.deepcopy(GAMES)
        change(document)
        assert any(said in error for error in checked(document)[0])


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3),
    st.just([]), st.just({}),
)  # fmt: skip


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_written_into_a_snapshot_it_is_refused_in_words_or_can_be_played(data: st.DataObject) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from([OURS, GAMES])))
    document.update(ticks=document["ticks"][:2], duration=120) if data.draw(st.booleans()) else None
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = document
        for _ in range(data.draw(st.integers(0, 6))):
            keys = [key for key in (at if isinstance(at, dict) else range(len(at))) if at[key] and isinstance(at[key], dict | list)]
            if not keys:
                break
            at = at[data.draw(st.sampled_from(keys))]
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if keys:
            at[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    try:
        snapshot = decode(msgspec.json.encode(document))
        if not validate(snapshot)[0]:
            to_scenario(snapshot)
    except MarketError as refused:
        assert str(refused)
