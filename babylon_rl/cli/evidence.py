"""``evidence``: the demo with several seeds, each in a state directory of its own, and docs/evidence.md made from the results.

A seed that is finished is read from its result file; one that was interrupted goes on. Nothing is left out: a seed without an
improvement stands in the table like the others.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, say
from babylon_rl.errors import TrainingError

RESULT = "demo.json"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("evidence")(evidence)


def evidence(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N-1.")] = 5,
    out: Annotated[Path, typer.Option(help="Where evidence.md and evidence.png are written.")] = Path("docs"),
    as_json: JsonOption = False,
) -> None:
    """Run the demo with several seeds and write docs/evidence.md; resumable."""
    from babylon_rl.models.packaged import base_model_dir
    from babylon_rl.settings import load_settings

    settings = load_settings()
    base = base_model_dir(settings)
    results = [_seed(settings.home, base, seed) for seed in range(seeds)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "evidence.png").write_bytes(_plot(results))
    (out / "evidence.md").write_text(_page(results), encoding="utf-8")
    document = {"seeds": results, "page": str(out / "evidence.md")}
    emit(document, lambda console: console.print(_table(results) + f"\n\nwritten to {out / 'evidence.md'}", markup=False), as_json)


def _seed(home: Path, base: Path, seed: int) -> dict[str, Any]:
    directory = home / "evidence" / f"seed-{seed}"
    result = directory / RESULT
    if result.is_file():
        say(f"seed {seed}: finished earlier")
        return dict(json.loads(result.read_text()))
    say(f"seed {seed}:")
    models = directory / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / base.name).exists():
        (models / base.name).symlink_to(base, target_is_directory=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "DIRECT_DATABASE_URL")}
    command = [sys.executable, "-m", "babylon_rl", "demo", "--seed", str(seed), "--json"]
    ran = subprocess.run(command, env=environment | {"BABYLON_RL_HOME": str(directory)}, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode != 0:
        raise TrainingError(
            f"The demo with seed {seed} ended with status {ran.returncode}; what it said stands above. Run the command again to go on."
        )
    partial = result.with_suffix(".partial")
    partial.write_text(ran.stdout)
    partial.replace(result)
    return dict(json.loads(ran.stdout))


def _row(result: dict[str, Any], model: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["model"] == model)


def _trained(result: dict[str, Any]) -> dict[str, Any]:
    return _row(result, result["modelVersion"])


def _base(result: dict[str, Any]) -> dict[str, Any]:
    return _row(result, "base")


def _share(before: dict[str, Any], after: dict[str, Any], name: str) -> str:
    return " → ".join("-" if row[name] is None else f"{100 * row[name]:.0f} %" for row in (before, after))


def _line(result: dict[str, Any]) -> str:
    base, row = _base(result), _trained(result)
    cells = [
        result["seed"],
        f"{base['pnl']:+.0f}",
        f"{row['pnl']:+.0f}",
        f"{row['improvement']:+.0f} ({row['improvementLow']:+.0f} to {row['improvementHigh']:+.0f})",
        _share(base, row, "winRate"),
        _share(base, row, "accuracy"),
        f"{base['invalid']} → {row['invalid']}",
        _share(base, row, "holdShare"),
        row["markets"],
        result["decision"],
        f"{result['seconds']:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _table(results: list[dict[str, Any]]) -> str:
    names = ["seed", "base", "trained", "improvement (95 %)", "win rate", "accuracy", "invalid", "HOLD", "markets", "gate", "seconds"]
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *map(_line, results)])


def _page(results: list[dict[str, Any]]) -> str:
    from babylon_rl.evaluation.comparison import confidence_of
    from babylon_rl.evaluation.looks import LOOKS
    from babylon_rl.evaluation.statistics import markets_needed
    from babylon_rl.evaluation.statistics.interval import normal_quantile, tail

    confidence = confidence_of(len(LOOKS))
    better = sum(_trained(result)["improvementLow"] > 0 for result in results)
    played = sorted({_trained(result)["markets"] for result in results})
    markets = f"{played[0]}" if len(played) == 1 else f"{played[0]} to {played[-1]}"
    spread = max(_standard_deviation(_trained(result), normal_quantile(tail(confidence))) for result in results)
    effect = statistics.fmean(_trained(result)["improvement"] for result in results)
    needed = markets_needed(abs(effect), spread, confidence=confidence)
    scripts = [row for row in results[0]["rows"] if row["role"] == "strategy"]
    players = [f"* {row['model']}: {row['pnl']:+.0f} ({row['low']:+.0f} to {row['high']:+.0f})" for row in scripts]
    return f"""# Evidence

Made by `make evidence`: the demo with {len(results)} seeds, each with its own simulated hours, training and state directory. Base and
checkpoint play the same {markets} unseen market hours (companies, questions and headlines that no training hour holds), one agent alone in
each, at temperature 0. Dollars an hour; intervals are 95 %, of the paired difference, by bootstrap over markets; those of improvements hold
over all {len(LOOKS)} looks that the gate may take at a growing benchmark.

**The interval of the improvement lies above 0 with {better} of {len(results)} seeds.** Mean improvement {effect:+.0f}; to see such
an effect with 80 % power takes about {needed} paired markets (at the widest interval seen), and {markets} were played.

{_table(results)}

![P&L of base and checkpoint by seed](evidence.png)

Scripted players in the same markets, for scale:

{chr(10).join(players)}

What this does not show: scores are the heuristic's unless JUDGE_MODEL was set; the markets are simulated, and their news carries a
signal by construction; most training sequences were composed by scripted strategies, whose best player bounds what can be imitated.
"""


def _standard_deviation(row: dict[str, Any], errors: float) -> float:
    """Of the paired differences, from their interval of ``errors`` standard errors to either side."""
    return float((row["improvementHigh"] - row["improvementLow"]) / 2 / errors * row["markets"] ** 0.5)


def _plot(results: list[dict[str, Any]]) -> bytes:
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for offset, find, color, label in ((-0.12, _base, "#8a8f98", "base"), (0.12, _trained, "#2563eb", "trained")):
        rows = [find(result) for result in results]
        errors = [[row["pnl"] - row["low"] for row in rows], [row["high"] - row["pnl"] for row in rows]]
        axis.errorbar(
            [result["seed"] + offset for result in results], [row["pnl"] for row in rows], yerr=errors, fmt="o", color=color, label=label
        )
    axis.axhline(0, color="#d4d4d8", linewidth=1, zorder=0)
    axis.set(
        xlabel="seed",
        ylabel="P&L, $ an hour",
        title="The same unseen markets, before and after training",
        xticks=[r["seed"] for r in results],
    )
    axis.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    pyplot.close(figure)
    return picture.getvalue()
