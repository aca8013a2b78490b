"""Words of the simulated world: what is held out shares nothing that a policy could remember, and no edition changes a market's bytes."""

import itertools
from collections import Counter

import pytest

from babylon_rl.market.headlines import EDITIONS, HELD_OUT_EDITIONS, TRAINING_EDITIONS, Edition, edition_named
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate, ticker_of

MARKETS = [("hour", "training/0/2025-03-03T00:00"), ("hour", "benchmark/0"), ("hour", 7), ("quick", 12345), ("quick", "posts")]
DIGESTS = {
    "training": ["e4f93bb076d5da25", "c08316658e33dcd6", "13c74674ee6e1b49", "5255e2dd5c586c7f", "357e60a2cb38f792"],
    "held-out": ["25c1741a3bd4d794", "c2add40202aa419f", "d26c8e30f971fa96", "e8033d538c89cc92", "e1854e5c0ef2d190"],
    "training-2": ["83fc9744d7e9feb9", "7c30108a34dd4ef4", "7e7fc5c30019eb14", "f9a5f7adfc320076", "336ae11043755d77"],
    "held-out-2": ["9934dba857fc31db", "32827c63c7b404db", "1b02a664365fe6ff", "16fd0ed525a80f2d", "8a95aeeb0970a863"],
}


@pytest.mark.parametrize("name", EDITIONS)
def test_a_market_of_an_edition_keeps_its_bytes(name: str) -> None:
    assert [generate(preset(size, seed=seed, edition=name)).digest[:16] for size, seed in MARKETS] == DIGESTS[name]


@pytest.mark.parametrize(("training", "held_out"), itertools.product(TRAINING_EDITIONS, HELD_OUT_EDITIONS))
def test_what_is_held_out_stands_in_no_training_hour(training: str, held_out: str) -> None:
    assert not edition_named(training).wordings & edition_named(held_out).wordings


def directions(edition: Edition) -> list[tuple[str, ...]]:
    """Groups of texts, one for each direction that a text can say."""
    events = [edition.good, edition.bad, edition.neutral, edition.toward_yes, edition.toward_no, edition.no_news]
    return [*events, *edition.posts.values()]


@pytest.mark.parametrize("edition", map(edition_named, EDITIONS), ids=EDITIONS)
def test_an_edition_says_nothing_twice_and_names_the_company_where_it_should(edition: Edition) -> None:
    counts = Counter(text for texts in directions(edition) for text in texts)
    assert counts.most_common(1)[0][1] == 1
    assert len({ticker_of(name) for name, _ in edition.companies}) == len(edition.companies)
    assert all(text.count("{c}") == 1 == text.count("{") for text in (*edition.good, *edition.bad, *edition.neutral, *edition.questions))
    assert not any("{" in text for text in (*edition.toward_yes, *edition.toward_no, *edition.no_news))
    assert all(price > 0 for _, price in edition.companies)


def test_new_editions_are_large_enough_to_learn_to_read_and_to_measure_it() -> None:
    training, held_out = edition_named(TRAINING_EDITIONS[-1]), edition_named(HELD_OUT_EDITIONS[-1])
    assert len(training.good) == len(training.bad) >= 90 and len(training.companies) >= 40
    assert min(len(held_out.good), len(held_out.bad)) >= 18 and len(held_out.companies) >= 20


def test_a_pair_says_good_news_first() -> None:
    training = edition_named(TRAINING_EDITIONS[-1])
    assert {"Profit at {c} rises 38%", "Under a new boss, creditors trust {c}"} <= set(training.good)
    assert {"Profit at {c} falls 38%", "Under a new boss, creditors abandon {c}"} <= set(training.bad)
    assert "The last permit is granted" in training.toward_yes and "The last permit is refused" in training.toward_no
