"""Confirmation: a test of a passed version against the deployed one in fresh markets, which no decision has used before.

The gate's markets are the same for every version, so luck in them is kept over generations. Here every test has markets of its own and a
level from an online procedure (statistics/live.py), so that of all versions ever promoted at most 5 % are expected to be no better than the
one they replaced. Only the two play. docs/decisions/0007-gate.md has the reasons.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import numpy as np

from babylon_rl.evaluation.benchmark import ModelSource, Say, gate_rows, same_prompt, trained_windows, version_source
from babylon_rl.evaluation.gate import CANDIDATE, DEPLOYED
from babylon_rl.evaluation.snapshots import confirmation_snapshots, require_unseen
from babylon_rl.evaluation.statistics.intervals import permutation_test
from babylon_rl.evaluation.statistics.live import next_level
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import Confirmation, begin_confirmation, end_confirmation, read_confirmations
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import deployed_model, read_models

FLIPS = 1_000_000  # of signs: levels fall to some 1e-5 after a hundred tests without a discovery


def confirm(
    connection: Connection,
    version: str,
    settings: Settings,
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving = served_here,
    on_progress: Progress = no_progress,
) -> Confirmation | str:
    """Test once whether a version earns more than the deployed one, else than the base.

    Both play the version's game. Returns a sentence where one of them cannot be played here, or where the deployed version was trained on
    another prompt: no market is fair to both then, so a person chooses the game.

    The outcome is stored; a version is never tested twice, and an interrupted test goes on in the same markets.

    Raises:
        ModelUnavailable: the endpoint stays down; what was played is kept.
    """
    models = {model.version: model for model in read_models(connection)}
    begun = next((test for test in read_confirmations(connection) if test.version == version), None)
    if begun is not None and begun.ended_at is not None:
        return begun
    newest = deployed_model(models.values())
    # A test that was begun keeps its rival, whatever was deployed since: its level was fixed for that comparison.
    reference = begun.reference if begun is not None else None if newest is None else newest.version
    if reference is not None and reference not in models:
        return f"{version} was not confirmed: {reference}, which its test began against, is not registered any more."
    ours = version_source(models[version], CANDIDATE, settings)
    deployed = None if reference is None else version_source(models[reference], DEPLOYED, settings)
    for source in (ours, deployed):
        if isinstance(source, str):
            return f"{version} was not confirmed: {source}"
    assert isinstance(ours, ModelSource) and not isinstance(deployed, str)
    game = ours.game
    if begun is None and deployed is not None and not same_prompt(game, deployed.game):
        return (
            f"{version} was not confirmed: it was trained in {game.name}, and {deployed.name}, which is deployed, in {deployed.game.name}. "
            f"Compare them in the game that your agents play, `babylon-rl benchmark run preset:hour:seeds=1-96 --model {version} --model "
            f"{deployed.name} --game {game.name}` (or {deployed.game.name}), then `babylon-rl models deploy {version}` releases it."
        )
    test = begin_confirmation(connection, version, reference, settings.confirmation_markets, next_level, clock())
    snapshots = confirmation_snapshots(test.first_market, test.markets, game)
    require_unseen(snapshots, trained_windows(models.values()))
    rival = deployed or ours.base
    assert rival is not None
    sources = [ours, rival]
    results = gate_rows(
        connection, settings, sources, snapshots, say, clock=clock, serving=serving, on_progress=on_progress, activity="confirmation"
    )
    mine, theirs = ([result.pnl_usd for result in results[source.name]] for source in sources)
    gains = [a - b for a, b in zip(mine, theirs, strict=True)]
    # One-sided (docs/decisions/0007-gate.md): the question is whether it earns more, not whether it differs.
    p = permutation_test(gains, alternative="greater", seed=test.number, flips=FLIPS)
    improvement = float(np.mean(gains))
    end_confirmation(connection, test.number, improvement, p, clock())
    return replace(test, improvement=improvement, p=p, ended_at=clock())
