"""Several generations with several seeds, summarized in docs/evidence/evidence.md: `make evidence`, or `python -m benchmarks.evidence`.

Each seed is a demo in a state directory of its own. A finished seed is read from its result file; an interrupted one resumes. Nothing is
left out: rejected versions and failed trainings are in the table like the others.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from babylon_rl.cli.children import run_child
from babylon_rl.cli.demo_stages import STAGES, WINDOWS
from babylon_rl.cli.output import say
from babylon_rl.errors import BabylonError, TrainingError
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.settings import load_settings
from benchmarks.evidence.page import page, table
from benchmarks.evidence.pictures import learning_curve, players
from benchmarks.evidence.results import require_comparable

RESULT = "result.json"
PAGE, PLAYERS, CURVE = "evidence.md", "evidence.png", "evidence-learning.png"


def evidence(seeds: int, generations: int, windows: int, out: Path) -> dict[str, Any]:
    """Play, judge, train and play again with seeds 0 to ``seeds`` - 1, and write the page and its pictures into ``out``."""
    settings = load_settings()
    base = base_model_dir(settings)
    root = settings.home / "evidence" / f"{generations}-generations-of-{windows}-hours"
    results = [run_seed(root / f"seed-{seed}", base, seed, generations, windows) for seed in range(seeds)]
    require_comparable(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / PLAYERS).write_bytes(players(results))
    (out / CURVE).write_bytes(learning_curve(results))
    (out / PAGE).write_text(page(results, PLAYERS, CURVE), encoding="utf-8")
    return {"seeds": results, "page": str(out / PAGE)}


def run_seed(directory: Path, base: Path, seed: int, generations: int, windows: int) -> dict[str, Any]:
    result = directory / RESULT
    if result.is_file():
        say(f"seed {seed}: finished earlier")
        return dict(json.loads(result.read_text()))
    say(f"seed {seed}:")
    models = directory / "models"
    models.mkdir(parents=True, exist_ok=True)
    # All seeds share the base model's files; everything else is separate.
    if not (models / base.name).exists():
        (models / base.name).symlink_to(base, target_is_directory=True)
    arguments = ["--seed", str(seed), "--generations", str(generations), "--windows", str(windows), "--json"]
    own = {"BABYLON_RL_HOME": str(directory), "DATABASE_URL": "", "DIRECT_DATABASE_URL": ""}
    printed = result.with_suffix(".printed")
    with printed.open("wb") as file:
        status = run_child([sys.executable, "-m", "babylon_rl", "demo", *arguments], own, directory, stdout=file)
    if status != 0:
        raise TrainingError(
            f"The demo with seed {seed} ended with status {status}; what it said stands above. Run the command again to go on."
        )
    # The result file appears only when complete: its existence marks a finished seed.
    document = json.loads(printed.read_text()) | _spent(directory / STAGES)
    printed.write_text(json.dumps(document, indent=2) + "\n")
    printed.replace(result)
    return dict(document)


def _spent(stages: Path) -> dict[str, float]:
    """Wall and processor seconds over all stages, interrupted runs included.

    The database server's are not included.
    """
    spent = [json.loads(line) for line in stages.read_text().splitlines()]
    return {name: round(sum(stage[name] for stage in spent), 1) for name in ("seconds", "processorSeconds")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1")
    parser.add_argument("--generations", type=int, default=3, help="how often each seed plays, judges and trains; at least 2")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="hours of market to simulate in each generation; at least 2")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help=f"where {PAGE} and its pictures are written")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.generations < 2 or asked.windows < 2:
        parser.error("--seeds is at least 1, --generations and --windows at least 2")
    try:
        document = evidence(asked.seeds, asked.generations, asked.windows, asked.out)
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
