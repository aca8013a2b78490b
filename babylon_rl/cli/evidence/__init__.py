"""Command ``evidence``: several generations with several seeds, summarized in docs/evidence/evidence.md.

Each seed is a demo in a state directory of its own. A finished seed is read from its result file; an interrupted one resumes. Nothing is
left out: rejected versions and failed trainings are in the table like the others.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from babylon_rl.cli.demo_stages import STAGES, WINDOWS
from babylon_rl.cli.output import JsonOption, emit, say
from babylon_rl.errors import TrainingError

RESULT = "result.json"
PAGE, PLAYERS, CURVE = "evidence.md", "evidence.png", "evidence-learning.png"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("evidence")(evidence)


def evidence(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N-1.")] = 3,
    generations: Annotated[int, typer.Option(min=2, help="How often each seed plays, judges and trains.")] = 3,
    windows: Annotated[int, typer.Option(min=2, help="Hours of market to simulate in each generation.")] = WINDOWS,
    out: Annotated[Path, typer.Option(help=f"Where {PAGE} and its pictures are written.")] = Path("docs/evidence"),
    as_json: JsonOption = False,
) -> None:
    """Play, judge, train and play again with several seeds, and write docs/evidence/evidence.md; resumable."""
    from babylon_rl.cli.evidence.page import page, table
    from babylon_rl.cli.evidence.pictures import learning_curve, players
    from babylon_rl.cli.evidence.results import require_comparable
    from babylon_rl.models.packaged import base_model_dir
    from babylon_rl.settings import load_settings

    settings = load_settings()
    base = base_model_dir(settings)
    root = settings.home / "evidence" / f"{generations}-generations-of-{windows}-hours"
    results = [_seed(root / f"seed-{seed}", base, seed, generations, windows) for seed in range(seeds)]
    require_comparable(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / PLAYERS).write_bytes(players(results))
    (out / CURVE).write_bytes(learning_curve(results))
    (out / PAGE).write_text(page(results, PLAYERS, CURVE), encoding="utf-8")
    document = {"seeds": results, "page": str(out / PAGE)}
    emit(document, lambda console: console.print(f"{table(results)}\n\nwritten to {out / PAGE}", markup=False), as_json)


def _seed(directory: Path, base: Path, seed: int, generations: int, windows: int) -> dict[str, Any]:
    from babylon_rl.cli.children import run_child

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
