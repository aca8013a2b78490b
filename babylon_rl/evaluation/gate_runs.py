"""What the gate's players did, kept as `benchmark run` keeps its runs: a result, and every decision with its prompt, for each market.

    <home>/benchmarks/<name>/benchmark-0003-gate.json                result
    <home>/benchmarks/<name>/benchmark-0003-gate.decisions.jsonl.gz  decisions

A market that a name plays again, with other weights or since the market's code changed, replaces its files. A market is 11 KB. They are for
looking at only: where they cannot be written, that is logged, and the gate goes on.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from babylon_rl.evaluation.contestants import MODEL, engine_version
from babylon_rl.evaluation.markets import OnRun
from babylon_rl.evaluation.result_building import Market, Played, decision_lines, result_of
from babylon_rl.evaluation.run_files import RunFiles
from babylon_rl.evaluation.snapshot_file.best_plan import best_plan
from babylon_rl.evaluation.snapshots import PLAYER_ID, Snapshot
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.run import Run
from babylon_rl.versions import content_version

DIRECTORY = "benchmarks"
KEPT = 20  # models whose runs stay, those that were compared last
_KEY = "gate"
_LOG = logging.getLogger("babylon_rl.evaluation")


def runs_directory(home: Path, name: str) -> Path:
    """Where the runs of a model lie; it need not be there."""
    return home / DIRECTORY / name


def run_keeper(home: Path, name: str, identity: str) -> OnRun:
    """Keeps the whole runs of one model; it may be called from several threads."""

    def keep(snapshot: Snapshot, run: Run) -> None:
        directory = runs_directory(home, name)
        account, best = run.records[PLAYER_ID].account, best_plan(snapshot.scenario)
        market = Market(snapshot.id, snapshot.scenario, best.pnl, account.start)
        key = content_version([identity, snapshot.fingerprint])
        played = Played(name, identity, MODEL, ONE_TICK, snapshot.seed, 0, key, engine_version())
        result = result_of(run, PLAYER_ID, market, played)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            RunFiles(directory, snapshot.id, _KEY).keep(result, decision_lines(run, PLAYER_ID))
        except OSError as error:  # a full disk, say: the market was played, perhaps paid for, and its result must not be lost with these
            _LOG.warning("The decisions of %s in %s are not kept: %s. Its result counts all the same.", name, snapshot.id, error)

    return keep


def forget_old_runs(home: Path, names: Iterable[str]) -> None:
    """Count ``names`` as compared now, and remove the runs of all but the KEPT models that were compared last."""
    for name in names:
        if runs_directory(home, name).is_dir():
            with suppress(OSError):  # a directory that cannot be written to
                os.utime(runs_directory(home, name))
    directories = [path for path in (home / DIRECTORY).glob("*") if path.is_dir()]
    for old in sorted(directories, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
