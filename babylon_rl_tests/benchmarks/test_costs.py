"""The costs of 1,000 trajectories follow from what is planned and recorded; docs/explanation/costs.md holds their table."""

import re
from collections.abc import Callable
from importlib.metadata import version

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.store.pipeline import dry
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.training import conftest  # noqa: F401 - registers the template
from babylon_rl_tests.training.sample import NOW
from benchmarks.costs import JUDGES, judging, training

PAGE = (ROOT / "docs" / "explanation" / "costs.md").read_text()


@pytest.fixture
def connection(copy_of: Callable[[str], Database]) -> Connection:
    with copy_of("read_sample").connect() as opened:
        yield opened


@pytest.mark.long
def test_the_page_has_the_tokens_of_the_recorded_game(connection: Connection) -> None:
    rows = {row["judge"]: row for row in judging(connection, JUDGES[:1])}  # the others differ by their price, and take as long
    assert f"litellm {version('litellm')} installs" in PAGE
    counts = rows[JUDGES[0]]
    assert f"{counts['episodes']} episodes, {counts['trajectories']} trajectories" in PAGE
    table = re.findall(r"^\| (\w+/\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", PAGE, re.M)
    shown = {judge: [float(cell.replace(",", "")) for cell in cells] for judge, *cells in table}
    assert set(shown) == set(JUDGES)
    for judge, row in rows.items():
        requests, prompt, answer, usd, most = shown[judge]
        assert (round(row["requests"]), round(row["completion_tokens"])) == (requests, answer)
        # Opaque names and orders follow from a secret: from one database to the next they differ by up to 3 % of the tokens.
        assert row["prompt_tokens"] == pytest.approx(prompt, rel=0.05)
        assert row["usd"] == pytest.approx(usd, rel=0.05, abs=0.006)
        assert row["usd_most"] == pytest.approx(most, rel=0.05, abs=0.006)


def test_a_version_costs_what_its_iterations_recorded(connection: Connection, settings: Settings) -> None:
    assert list(training(connection)) == []
    chosen = dry(settings)
    batch = freeze(connection, chosen, NOW).batch
    assert batch is not None
    prepare_batch(connection, batch.batch_id, chosen, NOW)
    train_batch(connection, batch.batch_id, chosen, NOW)
    (row,) = training(connection)
    assert (row["backend"], row["usd"]) == ("dry", 0)
    assert row["seconds"] >= 0 and row["tokens"] > 0 and row["sequences"] > 0
