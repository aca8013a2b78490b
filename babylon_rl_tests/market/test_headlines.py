"""The words of the simulated world: two editions that share nothing that a policy could remember."""

import pytest

from babylon_rl.market.headlines import HELD_OUT, TRAINING, Edition


def words(edition: Edition) -> dict[str, set[str]]:
    return {
        "companies": {name for name, _ in edition.companies},
        "questions": set(edition.questions),
        "headlines": {*edition.good, *edition.bad, *edition.neutral, *edition.toward_yes, *edition.toward_no},
    }


@pytest.mark.parametrize("kind", ["companies", "questions", "headlines"])
def test_what_is_held_out_stands_in_no_training_hour(kind: str) -> None:
    assert not words(TRAINING)[kind] & words(HELD_OUT)[kind]


@pytest.mark.parametrize("edition", [TRAINING, HELD_OUT], ids=lambda edition: edition.name)
def test_an_edition_says_nothing_twice_and_names_the_company_where_it_should(edition: Edition) -> None:
    names = [name for name, _ in edition.companies]
    about = [*edition.good, *edition.bad, *edition.neutral]
    assert len(set(names)) == len(names) and len(set(about)) == len(about)
    assert all("{c}" in text for text in (*about, *edition.questions))
    assert not any("{" in text for text in (*edition.toward_yes, *edition.toward_no))
    assert all(price > 0 for _, price in edition.companies)
