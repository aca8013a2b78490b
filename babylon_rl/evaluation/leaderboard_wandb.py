"""Leaderboard in Weights & Biases: table, plot and a curve per version, in one run.

wandb works in a process of its own with a time limit: a service that is down, or slow, costs the evidence nothing, and is said. A state
that has been sent is not sent again. Without a key nothing is sent; WANDB_MODE=offline writes files for `wandb sync` instead.
"""

import json
import sys
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.leaderboard import Leaderboard
from babylon_rl.settings import Settings
from babylon_rl.training.wandb_process import INIT_TIMEOUT_S, WandbProcess, WandbResult, link_of, open_run, refusal, run_request

RUN_ID = "babylon-rl-leaderboard"
_COLUMNS = (
    "place", "model", "role", "markets", "pnl", "low", "high", "improvement", "improvementLow", "improvementHigh", "sharpe", "maxDrawdown",
    "winRate", "accuracy", "invalidShare", "holdShare", "status", "decision", "reason",
)  # fmt: skip
_SENT = "leaderboard.json"


def send(board: Leaderboard, png: Path, settings: Settings, *, init_timeout_s: float = INIT_TIMEOUT_S) -> WandbResult:
    """Log a state of the leaderboard with its picture; errors of the service become sentences."""
    refused = refusal(settings)
    if refused is not None:
        return WandbResult(refused)
    home = settings.home / "wandb"
    where = [settings.wandb_base_url, settings.wandb_mode, settings.wandb_entity, settings.wandb_project]
    before = _sent(home)
    # The same state is sent once to the same project.
    if before.get("dataVersion") == board.data_version and before.get("where") == where:
        return WandbResult("As it is in Weights & Biases already.", before.get("link"))
    process = WandbProcess(__name__, run_request(settings, RUN_ID, "leaderboard", "leaderboard", initTimeout=init_timeout_s), settings)
    process.write(_content(board, png))
    sent = process.end()
    # Noted only after it arrived: what failed is sent with the next leaderboard.
    if sent.link is not None:
        (home / _SENT).write_text(json.dumps({"dataVersion": board.data_version, "where": where, "link": sent.link}))
    return sent


def _sent(home: Path) -> dict[str, Any]:
    try:
        state = json.loads((home / _SENT).read_bytes())
    except (FileNotFoundError, ValueError):  # cut off by a crash: then it is sent once more
        return {}
    return state if isinstance(state, dict) else {}


def _content(board: Leaderboard, png: Path) -> dict[str, Any]:
    rows = [line.document for line in board.lines]
    ranked = [line.document for line in board.versions]
    return {
        "rows": [[row[name] for name in _COLUMNS] for row in rows],
        "numbers": {f"pnl/{row['model']}": row["pnl"] for row in rows}
        | {f"improvement/{row['model']}": row["improvement"] for row in ranked if row["improvement"] is not None},
        "summary": {"dataVersion": board.data_version, "markets": board.markets, "versions": len(ranked)},
        "png": str(png),
    }


def _log(request: dict[str, Any], content: dict[str, Any]) -> str:
    """Log a state in the child process; returns the run's page or directory."""
    import wandb

    run = open_run(request)
    table = wandb.Table(columns=list(_COLUMNS), data=content["rows"])
    run.log({"leaderboard": table, "plot": wandb.Image(content["png"]), **content["numbers"]})
    run.summary.update(content["summary"])
    link = link_of(run, request)
    run.finish()
    return link


if __name__ == "__main__":
    print(json.dumps({"link": _log(json.loads(sys.stdin.readline()), json.loads(sys.stdin.readline()))}), flush=True)
