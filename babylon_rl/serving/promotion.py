"""Promotion of versions: from the gate's decision to a rollout, with AUTO_PROMOTE without a person."""

from collections.abc import Callable
from datetime import datetime

from babylon_rl.errors import ReleaseRefused
from babylon_rl.evaluation.confirmation import confirm
from babylon_rl.evaluation.gate import PASS
from babylon_rl.evaluation.model_sources import Say, Serving
from babylon_rl.market.serving import served_here
from babylon_rl.progress import Progress, unheard
from babylon_rl.serving.releases import Author, deploy, propose
from babylon_rl.settings import Settings
from babylon_rl.store.confirmations import Confirmation
from babylon_rl.store.connection import Connection
from babylon_rl.store.releases import BASE, ON_TRIAL, read_rollouts

AUTOMATION = "automation"


def promote(
    connection: Connection,
    version: str,
    decision: str,
    settings: Settings,
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving = served_here,
    on_progress: Progress = unheard,
) -> str:
    """Do what follows from the gate's decision on a version, once, and say it in a sentence.

    A version that passed becomes a candidate for a person to deploy. With AUTO_PROMOTE it is confirmed in fresh markets first, and its
    rollout starts at the first of ROLLOUT_STEPS.

    Raises:
        ModelUnavailable: the confirmation's endpoint stays down; the next run goes on from there.
    """
    if decision != PASS:
        return f"{version} is not released: its gate's decision is {decision}."
    earlier = next((rollout for rollout in read_rollouts(connection) if rollout.version == version), None)
    connection.commit()
    if earlier is not None:
        return f"{version} is {earlier.state.replace('_', ' ')} already."
    try:
        if not settings.auto_promote:
            propose(connection, version, Author(AUTOMATION, "passed the gate", clock(), automatic=True))
            return f"{version} is a candidate: `babylon-rl models deploy {version}` rolls it out, or AUTO_PROMOTE=true does."
        test = confirm(connection, version, settings, say, clock=clock, serving=serving, on_progress=on_progress)
        reason = test if isinstance(test, str) else sentence(test)
        author = Author(AUTOMATION, f"passed the gate; {reason}", clock(), automatic=True)
        confirmed = not isinstance(test, str) and test.confirmed
        trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
        connection.commit()
        if not confirmed or trial is not None:
            propose(connection, version, author)
            waits = "a person decides" if trial is None else f"{trial.version} is on trial"
            return f"{version} is a candidate, and {waits}: {reason}"
        rollout = deploy(connection, version, settings, author)
    except ReleaseRefused as refused:
        return f"{version} is not released: {refused}"
    return f"{version} is {rollout.state} at {rollout.percentage:g} % of agents: {reason}"


def sentence(test: Confirmation) -> str:
    """The outcome of a confirmation in words and numbers."""
    rival = test.reference or BASE
    numbers = f"{test.improvement:+.1f} dollars an hour against {rival} in {test.markets} fresh markets, p = {test.p:.2g}"
    verdict = "confirmed" if test.confirmed else "not confirmed"
    return f"{verdict}: {numbers}, where test {test.number} needs {test.level:.2g} at most."
