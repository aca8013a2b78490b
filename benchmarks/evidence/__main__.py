"""Several generations with several seeds, summarized in docs/evidence/: `make evidence`, or `python -m benchmarks.evidence --game NAME`.

Each seed is a demo in a state directory of its own, with a thread for every core, so that the last seed at work has them all. The base
plays first, once for all seeds, where they may need it to compare their first versions. A finished seed is a line of
docs/evidence/evidence-GAME.jsonl, so that another machine can add further ones; an interrupted one resumes. Nothing is left out: rejected
versions and failed trainings are in the table like the others.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from babylon_rl.cli.children import run_child, stop_children
from babylon_rl.cli.demo import CONFIRMATION_MARKETS
from babylon_rl.cli.demo_stages import STAGES, WINDOWS, stage
from babylon_rl.cli.output import progress_of_parts, say
from babylon_rl.errors import BabylonError, TrainingError, UsageError
from babylon_rl.evaluation.benchmark import base_source, gate_rows
from babylon_rl.evaluation.gate import FEWEST_MARKETS, analysis_sizes
from babylon_rl.evaluation.results import runs_directory
from babylon_rl.evaluation.snapshots import benchmark_snapshots, confirmation_snapshots
from babylon_rl.interrupts import handling
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.market.simulation.games import GAMES, POSTS, Game, game_named
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.device import best_device
from babylon_rl.models.threads import usable_cores
from babylon_rl.setting_sources import ENV_FILE, setting_sources
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.benchmarks import MarketResult, write_results
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.store.recording import simulated_hours
from babylon_rl.store.releases import BASE
from babylon_rl.windows import HOUR, utc_now, window_start
from benchmarks.evidence.page import GENERATIONS, page, table
from benchmarks.evidence.pictures import learning_curve, players
from benchmarks.evidence.results import Document, goes_on_otherwise, require_comparable

LOG, BEGUN_AT = "demo.log", "commit"
UNGATED = "-without-gate"
KEPT_GENERATIONS = 2  # of posts, before amounts
PAGE, PLAYERS, CURVE, RESULTS = "evidence.md", "evidence.png", "evidence-learning.png", "evidence.jsonl"
# Of the demo's document: paths of one machine, and rows that its standings have too.
_LEFT_OUT = {"checkpoint", "plot", "rows"}


@dataclass(frozen=True)
class Beginning:
    """The game of the first ``generations``, before that of the others."""

    game: Game
    generations: int


def evidence(
    seeds: int, generations: int, windows: int, out: Path, at_once: int | None = None, game: Game = POSTS, begin: Beginning | None = None
) -> dict[str, Any]:
    """Play, judge, train and play again with seeds 0 to ``seeds`` - 1, and write the page and its pictures into ``out``.

    Each game has a page of its own. ``at_once`` seeds run side by side, by default one a core. The first generations may play another game.
    """
    settings = load_settings()
    # An empty variable, which gives a seed its own database, does not win over that file.
    if setting_sources(Settings)["database_url"] == ENV_FILE:
        raise UsageError(f"DATABASE_URL stands in {ENV_FILE}: each seed needs a database of its own. Take it out for this command.")
    base = base_model_dir(settings)
    root = settings.home / "evidence" / run_name(game, generations, windows, begin)
    out.mkdir(parents=True, exist_ok=True)
    page_name, players_name, curve_name, results_name = (
        name.replace("evidence", f"evidence-{game.name}", 1) for name in (PAGE, PLAYERS, CURVE, RESULTS)
    )
    finished = Finished(out / results_name, root.name)
    make = partial(_make, finished=finished, base=base, generations=generations, windows=windows, game=game, at_once=at_once, begin=begin)
    results = make({seed: root / f"seed-{seed}" for seed in range(seeds)})
    # Where nothing was refused before the last generation, the loop without the gate is the same.
    others = [result["seed"] for result in results if goes_on_otherwise(result)]
    ungated = dict(zip(others, make({seed: root / f"seed-{seed}{UNGATED}" for seed in others}), strict=True))
    require_comparable([*results, *ungated.values()])
    (out / players_name).write_bytes(players(results))
    (out / curve_name).write_bytes(learning_curve(results))
    first = None if begin is None else (begin.game.name, begin.generations)
    (out / page_name).write_text(page(results, players_name, curve_name, game.name, ungated, first), encoding="utf-8")
    return {"seeds": results, "withoutGate": list(ungated.values()), "page": str(out / page_name)}


def run_name(game: Game, generations: int, windows: int, begin: Beginning | None = None) -> str:
    """Name of a run's directory, and of its results."""
    after = "" if begin is None else f"-after-{begin.generations}-of-{begin.game.name}"
    return f"{game.name}{after}-{generations}-generations-of-{windows}-hours"


class Finished:
    """Results in a file, a line each: run, name of its directory, the code's commit and the kind of numbers, then the demo's document."""

    def __init__(self, file: Path, run: str) -> None:
        self._file, self._run, self._lock = file, run, Lock()

    def read(self) -> dict[str, Document]:
        """Results of this run by their names."""
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        found = [json.loads(line) for line in lines]
        return {one["name"]: one for one in found if one["run"] == self._run}

    def add(self, name: str, document: Document) -> None:
        """Append a result."""
        numbers = str(best_device().dtype()).removeprefix("torch.")
        about = {"run": self._run, "name": name, "commit": _commit(), "numbers": numbers}
        kept = about | _kept(document) | {"generations": [_kept(one) for one in document["generations"]]}
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")


def _kept(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in _LEFT_OUT}


def _commit() -> str:
    """The commit that is checked out here; empty outside of a clone."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def _make(
    directories: Mapping[int, Path], finished: Finished, base: Path, generations: int, windows: int, game: Game, at_once: int | None,
    begin: Beginning | None,
) -> list[Document]:  # fmt: skip
    """Results of the seeds, by their directories; those that are not finished are run."""
    earlier = finished.read()
    missing = {seed: own for seed, own in directories.items() if own.name not in earlier}
    for own in directories.values():
        if own.name in earlier:
            say(f"{own.name}: finished earlier")
    if missing:
        cores = usable_cores()
        at_once = min(len(missing), at_once or cores)
        with handling(dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.default_int_handler)), ThreadPoolExecutor(at_once) as pool:
            games = dict.fromkeys([game] if begin is None else [begin.game, game])
            played = [base_play(next(iter(missing.values())).with_name(BASE), base, one) for one in games]
            run = partial(
                run_seed, finished=finished, base=base, played=played, generations=generations, windows=windows, game=game, begin=begin,
                threads=max(1, cores // at_once),
            )  # fmt: skip
            runs = [pool.submit(run, own, seed) for seed, own in missing.items()]
            try:
                wait(runs)
            except KeyboardInterrupt:
                _end(runs, list(missing.values()))
                raise
            for ended in runs:
                ended.result()
    found = finished.read()
    return [found[own.name] for own in directories.values()]


def _end(runs: Sequence[Future[None]], directories: Sequence[Path]) -> None:
    """End the seeds' programs with all their children, and begin no other."""
    for run in runs:
        run.cancel()
    # Again until all have ended: a program that has just been started has no note yet.
    while wait(runs, timeout=0.5).not_done:
        for directory in directories:
            stop_children(directory, orphans_only=False)


@dataclass(frozen=True)
class BasePlay:
    """What the base earned in markets that every seed may need, as the gate stores it.

    ``identity`` is the hash of its weights, ``fingerprints`` those of the markets, by their id.
    """

    identity: str
    fingerprints: dict[str, str]
    results: list[MarketResult]


def base_play(directory: Path, base: Path, game: Game) -> BasePlay:
    """Let the base play the markets up to the first look at which a version can pass the gate, and those of a first confirmation.

    Markets that it played earlier are not played again.
    """
    settings = _settings(directory, base)
    source = base_source(settings)
    looks = analysis_sizes(settings.benchmark_markets)
    passing = next((markets for markets in looks if markets >= FEWEST_MARKETS), looks[-1])
    snapshots = (*benchmark_snapshots(passing, game), *confirmation_snapshots(0, CONFIRMATION_MARKETS, game))
    with (
        stage(settings, f"The base in {len(snapshots)} markets of {game.name}, once for all seeds"),
        _database(settings) as connection,
        progress_of_parts("   ") as on_progress,
    ):
        played = gate_rows(
            connection, settings, [source], snapshots, lambda sentence: None, clock=utc_now, serving=served_here, on_progress=on_progress
        )
    return BasePlay(source.identity, {snapshot.id: snapshot.fingerprint for snapshot in snapshots}, played[source.name])


def run_seed(
    directory: Path, seed: int, *, finished: Finished, base: Path, played: Sequence[BasePlay], generations: int, windows: int, game: Game,
    begin: Beginning | None, threads: int,
) -> None:  # fmt: skip
    """Run the demo of a seed to its end, and add its result; the directory's name says whether without the gate.

    In POSTS a copy of the directory is kept after KEPT_GENERATIONS, and other runs that begin alike go on from it.
    """
    log = directory / LOG
    # A directory without a log was interrupted before its demo began, and goes on by itself.
    if not directory.exists() and (kept := beginning_of(directory, finished, game, begin, generations, windows)) is not None:
        copy_state(kept, directory)
    say(f"{directory.name}: {log} says how far it is")
    # Its gate and its confirmation find what the base played, and play the rest.
    with _database(_settings(directory, base)) as connection:
        for one in played:
            write_results(connection, BASE, one.identity, one.fingerprints, one.results, utc_now())
        hours = simulated_hours(connection, seed)
    if not (begun_at := directory / BEGUN_AT).exists():
        begun_at.write_text(_commit())
    # With its decisions, from which its expected dollars are computed.
    shutil.copytree(runs_directory(directory.with_name(BASE), BASE), runs_directory(directory, BASE), dirs_exist_ok=True)
    courses = [(game, generations)] if begin is None else [(begin.game, begin.generations), (game, generations)]
    # A state that has gone further is no beginning: a run that goes on has kept its copy.
    further = bool(hours) and window_start(hours[-1]) >= window_start(hours[0]) + KEPT_GENERATIONS * (windows + 1) * HOUR
    gated = not directory.name.endswith(UNGATED)
    keeps = game == POSTS and begin is None and gated and generations > KEPT_GENERATIONS and not further
    if keeps:
        courses.insert(0, (game, KEPT_GENERATIONS))
    # Side by side more threads than cores take a quarter to a third more processor time for the same steps.
    own = {"BABYLON_RL_HOME": str(directory), "DATABASE_URL": "", "DIRECT_DATABASE_URL": "", "OMP_NUM_THREADS": str(threads)}
    printed = directory / "result.printed"
    for played_game, last in courses:
        arguments = ["--seed", str(seed), "--generations", str(last), "--windows", str(windows), "--game", played_game.name, "--json"]
        if not gated:
            arguments.append("--no-gate")
        with printed.open("wb") as file, log.open("ab") as said:
            status = run_child([sys.executable, "-m", "babylon_rl", "demo", *arguments], own, directory, stdout=file, stderr=said)
        if status != 0:
            raise TrainingError(f"The demo with seed {seed} ended with status {status}; {log} says why. Run the command again to go on.")
        if keeps and last == KEPT_GENERATIONS and not (own_copy := kept_copy(directory, last)).is_dir():
            copy_state(directory, own_copy)
    finished.add(
        directory.name, json.loads(printed.read_text()) | _spent(directory, directory.with_name(BASE)) | {"begunAt": begun_at.read_text()}
    )
    say(f"{directory.name}: finished")


def beginning_of(directory: Path, finished: Finished, game: Game, begin: Beginning | None, generations: int, windows: int) -> Path | None:
    """The copy of a state that a seed can go on from: the same generations of the same seed, by the run of posts; None without one.

    A seed without the gate begins like the one with it where that one's first versions were all released.
    """
    name = directory.name.removesuffix(UNGATED)
    first = begin or Beginning(game, KEPT_GENERATIONS)
    if name == directory.name:
        alike = begin is not None
    else:
        alike = all(one["released"] for one in finished.read()[name]["generations"][: first.generations])
    kept = kept_copy(directory.parent.with_name(run_name(first.game, generations, windows)) / name, first.generations)
    return kept if alike and kept.is_dir() else None


def kept_copy(directory: Path, generations: int) -> Path:
    return directory.with_name(f"{directory.name}-after-{generations}")


def copy_state(state: Path, to: Path) -> None:
    """Copy a state directory that nothing uses, whole or not at all."""
    partial = to.with_name(f".{to.name}")
    shutil.rmtree(partial, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    # Owners too: where root runs this, the embedded database belongs to another user.
    subprocess.run(["cp", "-a", str(state), str(partial)], check=True)
    partial.rename(to)


def _settings(directory: Path, base: Path) -> Settings:
    """Settings of a state directory with a database of its own; all share the base model's files alone."""
    models = directory / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / base.name).exists():
        (models / base.name).symlink_to(base, target_is_directory=True)
    return load_settings(babylon_rl_home=directory, database_url=None, direct_database_url=None)


@contextmanager
def _database(settings: Settings) -> Iterator[Connection]:
    """A connection to the migrated database of a state directory."""
    with open_database(settings) as database:
        migrate(database)
        with database.connect() as connection:
            yield connection


def _spent(*directories: Path) -> dict[str, float]:
    """Wall and processor seconds over all stages of these state directories, interrupted runs included.

    The database servers' are not included.
    """
    spent = [json.loads(line) for directory in directories for line in (directory / STAGES).read_text().splitlines()]
    return {name: round(sum(stage[name] for stage in spent), 1) for name in ("seconds", "processorSeconds")}


def beginning(text: str) -> Beginning:
    name, _, generations = text.partition(":")
    if name not in GAMES or not generations.isdecimal() or int(generations) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not GAME:N, as posts:2; games are {', '.join(GAMES)}")
    return Beginning(GAMES[name], int(generations))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--game", default=POSTS.name, choices=tuple(GAMES), help="what is played and trained")
    parser.add_argument(
        "--begin", type=beginning, metavar="GAME:N", help="the first N generations play this game, as posts:2 before amounts"
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to N-1")
    parser.add_argument("--generations", type=int, default=GENERATIONS, help="how often each seed plays, judges and trains; at least 2")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="hours of market to simulate in each generation; at least 2")
    parser.add_argument("--at-once", type=int, help="seeds side by side, each 1.8 GB, 3.3 in float32; by default one a core")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help=f"where {PAGE} and its pictures are written")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.generations < 2 or asked.windows < 2 or (asked.at_once or 1) < 1:
        parser.error("--seeds and --at-once are at least 1, --generations and --windows at least 2")
    try:
        document = evidence(asked.seeds, asked.generations, asked.windows, asked.out, asked.at_once, game_named(asked.game), asked.begin)
    except BabylonError as failed:
        print(failed, file=sys.stderr)
        return failed.exit_code
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again: it goes on.", file=sys.stderr)
        return 130
    print(json.dumps(document, indent=2) if asked.json else f"{table(document['seeds'])}\n\nwritten to {document['page']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
