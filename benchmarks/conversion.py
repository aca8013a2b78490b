"""Conversion of a batch's trajectories into training sequences, and into tokens: `python benchmarks/conversion.py` prints JSON.

10,000 trajectories of the simulated market in a prepared batch. Timed are: reading the hours alone; the conversion (rows, leak search with
the hours' secrets, TrainSequences); what the CPU trainer then needs to make tokens of them, with a tokenizer that has seen nothing yet;
and both, one after the other, whose bound is 5,000 trajectories a second. Medians of some turns in one run; seconds of CPU tell what a busy
machine's clock does not.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from training_rows import Played, played

from babylon_rl.episodes.reading import read_windows
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.store.connection import Connection
from babylon_rl.training.backends.cpu.policy import make_items
from babylon_rl.training.conversion import Conversion, convert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOWS, AGENTS = 40, 30
TURNS = 5
BOUND_A_SECOND = 5_000


def timed(work: Callable[[], object], turns: int = TURNS) -> tuple[float, float]:
    """Median seconds by the clock and of this process's CPU."""
    clock, cpu = [], []
    for _ in range(turns):
        started, used = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return statistics.median(clock), statistics.median(cpu)


def converted(connection: Connection, game: Played) -> Conversion:
    """The whole batch's sequences."""
    return convert(connection, game.prepared.remaining, game.settings)


def measure(game: Played) -> dict[str, float]:
    """Trajectories a second of each part."""
    number = sum(len(episode.trajectory_ids) for episode in game.prepared.remaining)
    windows = sorted({episode.window for episode in game.prepared.remaining})
    unused = iter([fresh_tokenizer(game) for _ in range(2 * TURNS)])
    with game.database.connect() as connection:
        sequences = converted(connection, game).sequences
        parts = {
            "read": lambda: [read_windows(connection, [window], game.settings, texts=True) for window in windows],
            "converted": lambda: converted(connection, game),
            "tokenized": lambda: make_items(next(unused), sequences),
            "converted_and_tokenized": lambda: make_items(next(unused), converted(connection, game).sequences),
        }
        seconds = {name: timed(work) for name, work in parts.items()}
    found = {f"{name}_a_second": round(number / clock_s) for name, (clock_s, _) in seconds.items()}
    of_cpu = {f"{name}_a_second_of_cpu": round(number / cpu_s) for name, (_, cpu_s) in seconds.items()}
    return {"trajectories": number, "sequences": len(sequences), **found, **of_cpu, "bound_a_second": BOUND_A_SECOND}


def fresh_tokenizer(game: Played) -> "PreTrainedTokenizerBase":
    """One of whose texts nothing is kept; its grammars are compiled in the turn too."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_dir(game.settings))


def main() -> int:
    """Print the figures; 1 when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    given = parser.parse_args()
    with played(given.windows, AGENTS) as game:
        found = measure(game)
    print(json.dumps(found, indent=2))
    return int(found["converted_and_tokenized_a_second"] < BOUND_A_SECOND)


if __name__ == "__main__":
    sys.exit(main())
