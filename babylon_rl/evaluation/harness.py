"""The harness: players of markets and training hours, and conditions on the result.

A fault is a sentence; no sentence means that there was something to learn from, that something was learned, and that it can be used.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from babylon_rl.errors import CheckFailed
from babylon_rl.evaluation.compare_results import ComparisonDocument
from babylon_rl.evaluation.play import PLAYER_ID, Player, scripted
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.market.simulation.actions import Invalid
from babylon_rl.market.simulation.agents import AgentFactory
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario, opening
from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.market.spawn import TICKS, SpawnRequest, players_of
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.checkpoints import read_remote, verify
from babylon_rl.settings import AutomationSettings, Settings
from babylon_rl.store.batches import BatchGroup
from babylon_rl.store.registry import Model
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.training.backends.protocol import DRY_BASE_MODEL
from babylon_rl.training.readiness import Readiness
from babylon_rl.training.tracking import artifact_faults, refusal
from babylon_rl.versions import content_version


def harness_players(agents: int) -> list[Player]:
    """Scripted strategies in turn, in the order of ``spawn``. The second round is named ``balanced-2`` and draws other numbers."""
    spawned = players_of(SpawnRequest(agents, 0, 1, 0))
    return [_player(player.strategy, index // len(STRATEGIES) + 1) for index, player in enumerate(spawned)]


def _player(strategy: str, round_: int) -> Player:
    first = scripted(strategy)
    if round_ == 1:
        return first

    def make(snapshot: Snapshot, answers: Path | None) -> AgentFactory:
        agent = first.make(snapshot, answers)
        return lambda agent_id, seed: agent(f"{agent_id}-{round_}", seed)

    return replace(first, name=f"{strategy}-{round_}", identity=content_version([first.identity, round_]), make=make)


def missing_hours(state: Readiness, settings: AutomationSettings, agents: int) -> int:
    """Hours of ``agents`` until enough data can be frozen for a training; at least 1."""
    # Both conditions of readiness count: trajectories and groups.
    trajectories = ceil((settings.training_min_trajectories - state.total_trajectories) / (agents * TICKS))
    return max(1, trajectories, settings.training_min_groups - state.scenario_groups)


def benchmark_faults(comparison: ComparisonDocument) -> list[str]:
    """Faults of a benchmark without any difference between players."""
    pnls = [row.pnl.mean for row in comparison.agents]
    if max(pnls) - min(pnls) > 0:
        return []
    return [f"The benchmark ranks nobody: all {len(pnls)} agents earned {pnls[0]:+.2f} dollars. Play longer or other markets."]


def learning_faults(groups: Sequence[BatchGroup], steps: Sequence[TrainingStep]) -> list[str]:
    """Faults of a finished training that learned nothing. Causes are equal scores, no token with a gradient, or a dry run."""
    faults = []
    if any(step.backend == DRY_BASE_MODEL for step in steps):
        return ["Nothing was learned: the dry trainer trains nothing. Unset LOCAL_BASE_MODEL to train the packaged model."]
    if not any(group.highest > group.lowest for group in groups):
        scores = sorted({f"{group.mean:.3f}" for group in groups})
        faults.append(f"The scores rank nobody: in all {len(groups)} hours every agent has the same ({', '.join(scores) or 'none'}).")
    if not sum(step.trainable_tokens or 0 for step in steps):
        faults.append("No token carried a gradient in any iteration: the checkpoint is its parent again.")
    return faults


def published_faults(model: Model, checkpoint: Path, settings: Settings) -> list[str]:
    """Faults of the artifact of a training that is tracked online: there is none, or its files are not the checkpoint's.

    The training service's own artifacts have no copy here to be compared with.
    """
    if refusal(settings) is not None or settings.wandb_mode != "online" or read_remote(checkpoint) is not None:
        return []
    if model.wandb_artifact_id is None:
        return [f"The training published no artifact. {model.tracking_refusal or 'The log of its run says why.'}"]
    return artifact_faults(model.wandb_artifact_id, checkpoint, settings)


def answer_of(checkpoint: Path, version: str, base_model: str, scenario: Scenario, settings: Settings) -> str | None:
    """Verify a checkpoint, serve it, and return its answer to one market decision.

    The answer of a dry run is None.

    Raises:
        CheckpointError: it is damaged, or made for another base.
        CheckFailed: it does not answer, or no action can be read from its answer.
    """
    if base_model == DRY_BASE_MODEL:
        verify(checkpoint)
        return None
    # Files first: a damaged adapter gives a clearer error than its server.
    verify(checkpoint, base_model_dir(settings))
    with served_here(settings, {version: checkpoint}) as url, ChatClient(url, None, version, logprobs=False) as client:
        run = play(opening(scenario, 1), {PLAYER_ID: model_agent(client, temperature=0.0)})
    if run.stopped is not None:
        raise CheckFailed(f"{version} was loaded but does not answer. {run.stopped}")
    turn = run.records[PLAYER_ID].turn(0)
    if isinstance(turn.outcome, Invalid):
        raise CheckFailed(f"{version} was loaded, but its answer is no action: {turn.outcome.reason}")
    return turn.call.response if turn.call is not None else ""
