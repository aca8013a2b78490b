"""Measures the recorded game and the simulated market: `python -m benchmarks.market_fit [--database URL] [--write]` prints two tables.

The recorded game is the sample that the tests use, on an embedded server of its own, or the database given. ``--write`` writes
docs/evidence/market-fit.md and its pictures anew.
"""

import argparse
import contextlib
import gzip
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from babylon_rl.market.simulation.config import MarketModel, preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.store.connection import Connection
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from benchmarks.market_fit.measure import measure
from benchmarks.market_fit.page import comparison, constants_table, page
from benchmarks.market_fit.plots import GAME, OURS, moves_png, told_png
from benchmarks.market_fit.sources import recorded, simulated

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "babylon_rl_tests" / "data" / "babylon_realtime.sql.gz"
DOCS = ROOT / "docs"
CONFIG = preset("week", minutes=2 * 1440, resolving=0.0)


@contextlib.contextmanager
def game_database(given: str | None) -> Iterator[str]:
    """The address of the database with the recorded game."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="babylon-rl-fit-") as home, use_server(Path(home)) as url:
        psql = Cluster(Path(home)).programs / "psql"
        sql = gzip.decompress(SAMPLE.read_bytes())
        subprocess.run([psql, "-q", "-X", "-v", "ON_ERROR_STOP=1", url], input=sql, stdout=subprocess.DEVNULL, check=True)
        yield url


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="a database with a recorded game instead of the sample")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/market-fit.md and its pictures")
    arguments = parser.parse_args()
    with game_database(arguments.database) as url, Connection.connect(url) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        game = measure(recorded(connection))
    model = MarketModel()
    ours = measure(simulated(generate(CONFIG, model)))
    print("\n".join([*comparison(game, ours, CONFIG), "", *constants_table(game, model)]))
    if arguments.write:
        (DOCS / "evidence" / "market-fit.md").write_text(page(game, ours, CONFIG))
        fits = {GAME: game, OURS: ours}
        (DOCS / "images" / "market-fit-told.png").write_bytes(told_png(fits))
        (DOCS / "images" / "market-fit-moves.png").write_bytes(moves_png(fits))


if __name__ == "__main__":
    main()
