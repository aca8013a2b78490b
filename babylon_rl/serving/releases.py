"""Releases of versions as a state machine: TRANSITIONS is all of it.

Each transition is one transaction under one lock, with an event that says who, why and when; trained_models (and the game's switch, with
GAME_SWITCH) move in the same transaction, and gateways hear of it when it commits. A version is deployed, for the gate, the next training
and `latest`, once its rollout has reached all agents; until then the version deployed before it answers the others.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from babylon_rl.errors import ModelUnavailable, ReleaseRefused, UsageError
from babylon_rl.logs import log_context
from babylon_rl.services import WANDB, unknown_service, upstream_of
from babylon_rl.serving.routing import route
from babylon_rl.settings import Settings
from babylon_rl.store import releases as stored
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.live_usage import read_last_calls
from babylon_rl.store.registry import Model, deployed_model, lock_models, read_models
from babylon_rl.store.releases import BASE, ON_TRIAL, ReleaseAuthor, Rollout, State, Strategy

Action = Literal["propose", "start", "set_share", "release", "pause", "resume", "roll_back", "supersede"]

LIVE: tuple[State, ...] = ("candidate", *ON_TRIAL, "released")  # type: ignore[assignment]
# Of each action: the states in which it is possible (None: a version without a rollout), the state after it, and its words.
TRANSITIONS: dict[Action, tuple[tuple[State | None, ...], State, str]] = {
    "propose": ((None,), "candidate", "become a candidate"),
    "start": ((None, "candidate"), "rolling", "be rolled out"),
    "set_share": (("rolling",), "rolling", "get another share"),
    "release": ((None, "candidate", "rolling", "paused"), "released", "be released"),
    "pause": (("rolling",), "paused", "be paused"),
    "resume": (("paused",), "rolling", "be resumed"),
    "roll_back": (LIVE, "rolled_back", "be rolled back"),
    "supersede": (LIVE, "superseded", "be superseded"),
}
_LOG = logging.getLogger(__name__)


def next_state(version: str, state: State | None, action: Action) -> State:
    """The state after an action. Raises ReleaseRefused: it is not possible in this state."""
    possible_in, after, words = TRANSITIONS[action]
    if state not in possible_in:
        there = "has no rollout under way" if state is None else f"is {state.replace('_', ' ')}"
        raise ReleaseRefused(f"{version} {there} and cannot {words}.")
    return after


def propose(connection: Connection, version: str, author: ReleaseAuthor) -> Rollout:
    """Make a version a candidate in place of an earlier one. Raises ReleaseRefused: it cannot be deployed, or has a rollout under way."""
    with _transition(connection, author) as at:
        model = at.deployable(version)
        state = next((one.state for one in at.live if one.version == version), None)
        next_state(version, state, "propose")
        at.supersede_candidates()
        return at.begin(model.version, "propose", "gradual", 0.0, at.deployed)


def deploy(
    connection: Connection,
    version: str,
    settings: Settings,
    author: ReleaseAuthor,
    *,
    strategy: Strategy = "gradual",
    percentage: float | None = None,
    agent_ids: Sequence[str] = (),
) -> Rollout:
    """Roll a version out to all agents (immediate), a share (gradual) or ``agent_ids`` (test).

    ``percentage`` of a gradual rollout is by default the first of its steps; 100 releases it.

    Raises:
        ReleaseRefused: the version cannot be deployed, or its state or another version's rollout forbids it.
        UsageError: the arguments do not fit together.
    """
    if (strategy == "test") != bool(agent_ids):
        raise UsageError("Strategy test needs the agents that get the version, and only test does: --strategy test --agents ID,ID.")
    if strategy != "gradual" and percentage is not None:
        raise UsageError(f"A percentage belongs to the strategy gradual, not to {strategy}.")
    # The strategy test has no share: the listed agents alone get the version.
    share = 100.0 if strategy == "immediate" else 0.0 if strategy == "test" else percentage
    share = settings.rollout_steps[0] if share is None else share
    if not (0 < share <= 100 or strategy == "test"):
        raise UsageError(f"A share is above 0 and at most 100 percent, not {share:g}.")
    with _transition(connection, author, settings) as at:
        model = at.deployable(version)
        if at.deployed == version:
            raise ReleaseRefused(f"{version} is deployed already.")
        trial, own = at.trial, next((one for one in at.live if one.version == version), None)
        if trial is not None and trial.version != version:
            if strategy != "immediate":
                raise ReleaseRefused(
                    f"{trial.version} is {trial.state} at {trial.percentage:g} % of agents, and only one version is on trial at a time: "
                    "roll it back, let it end, or deploy with --strategy immediate."
                )
            # Before its own trial begins: the table holds one on trial at a time.
            at.change(trial, "supersede")
        if share == 100:
            return at.release(model, own, strategy)
        if own is None:
            return at.begin(model.version, "start", strategy, share, at.deployed, agent_ids)
        action: Action = "start" if own.state == "candidate" else "set_share"
        return at.change(own, action, strategy=strategy, percentage=share, agent_ids=tuple(agent_ids))


def pause(connection: Connection, author: ReleaseAuthor) -> Rollout:
    """Hold the version on trial at its share. Raises ReleaseRefused: no version is on trial, or it is paused."""
    with _transition(connection, author) as at:
        return at.change(at.required_trial(), "pause")


def resume(connection: Connection, author: ReleaseAuthor) -> Rollout:
    """Let a paused version advance again. Raises ReleaseRefused: no version is paused."""
    with _transition(connection, author) as at:
        return at.change(at.required_trial(), "resume")


def rollback(
    connection: Connection, settings: Settings, author: ReleaseAuthor, target: str | None = None, *, trial_id: int | None = None
) -> Rollout:
    """Take the version on trial back, else the deployed one; return the rollout that ended.

    ``target`` is the version (or ``base``) to return to, by default the one before. The version rolled back from is marked: nothing
    automatic deploys it again. With ``trial_id`` only that rollout is taken back.

    Raises:
        ReleaseRefused: nothing is released, the rollout of ``trial_id`` is not on trial any more, or ``target`` was never deployed or is
            not usable.
    """
    with _transition(connection, author, settings) as at:
        trial = at.trial
        if trial_id is not None and (trial is None or trial.rollout_id != trial_id):
            raise ReleaseRefused("That rollout has ended already.")
        if trial is not None:
            ended = at.change(trial, "roll_back")
            at.archive(trial.version)
            # With the trial's end its agents are back at the deployed version.
            if target in (None, at.deployed or BASE):
                return ended
        released = next((one for one in at.live if one.state == "released"), None)
        if released is None:
            raise ReleaseRefused("Nothing is released that could be rolled back; `babylon-rl models` shows each version's state.")
        back_to = at.previous(released) if target is None else at.earlier(target, released.version)
        ended = at.change(released, "roll_back")
        at.archive(released.version)
        at.restore(back_to)
        return ended


def agents_updated(connection: Connection, settings: Settings, now: datetime) -> int:
    """Count the last day's agents that get another version now than at their last call; none with a pin that fails."""
    routing, calls = stored.read_routing(connection), read_last_calls(connection, now - timedelta(days=1))
    try:
        return sum(route(routing, settings, None, call.agent_id).version != call.version for call in calls)
    except ModelUnavailable:
        return 0


def marked_versions(connection: Connection) -> set[str]:
    """Versions that were rolled back from, which nothing automatic deploys again."""
    return {one.version for one in stored.read_rollouts(connection, ("rolled_back",))}


@contextmanager
def _transition(connection: Connection, author: ReleaseAuthor, settings: Settings | None = None) -> Iterator["_Registry"]:
    """Run the block as one transaction that no other transition runs beside."""
    with own_transaction(connection):
        # In this order everywhere, so that no two wait for each other. What is decided on is read under both locks.
        connection.take_lock(stored.RELEASES_LOCK)
        lock_models(connection)
        models, live = read_models(connection), stored.read_rollouts(connection, LIVE)
        deployed = deployed_model(models)
        versions = {model.version: model for model in models}
        yield _Registry(connection, author, settings, versions, None if deployed is None else deployed.version, live)


@dataclass(frozen=True)
class _Registry:
    """Versions and live rollouts within a transition, and its steps."""

    connection: Connection
    author: ReleaseAuthor
    settings: Settings | None
    models: Mapping[str, Model]
    deployed: str | None
    live: Sequence[Rollout]

    @property
    def trial(self) -> Rollout | None:
        return next((one for one in self.live if one.state in ON_TRIAL), None)

    def required_trial(self) -> Rollout:
        if self.trial is None:
            raise ReleaseRefused("No version is on trial; `babylon-rl models` shows each version's state.")
        return self.trial

    def deployable(self, version: str) -> Model:
        model = self.models.get(version)
        if model is None:
            raise ReleaseRefused(f"There is no version {version}; `babylon-rl models` lists those that there are.")
        if model.foreign:
            raise ReleaseRefused(f"{version} was made by another producer, who deploys it.")
        if not model.can_be_asked:
            raise ReleaseRefused(f"{version} is {model.shown_status} and cannot be deployed.")
        if (unknown := unknown_service(version, upstream_of(model.backend, model.storage_path))) is not None:
            raise ReleaseRefused(unknown)
        if self.author.automatic and version in marked_versions(self.connection):
            raise ReleaseRefused(f"{version} was rolled back from: only a person deploys it again.")
        return model

    def begin(
        self, version: str, action: Action, strategy: Strategy, percentage: float, previous: str | None, agent_ids: Sequence[str] = ()
    ) -> Rollout:
        state = next_state(version, None, action)
        return stored.insert_rollout(self.connection, version, state, strategy, percentage, agent_ids, previous, self.author)

    def change(self, before: Rollout, action: Action, **changed: Any) -> Rollout:
        state, author = next_state(before.version, before.state, action), self.author
        after = replace(before, state=state, changed_at=author.now, **changed)
        stored.change_rollout(self.connection, before, after, author)
        with log_context(version=before.version):
            _LOG.info("%s became %s at %g %%", before.state, after.state, after.percentage, extra={"who": author.who, "why": author.why})
        return after

    def release(self, model: Model, own: Rollout | None, strategy: Strategy) -> Rollout:
        # The released one first: the table holds one released rollout at a time.
        for one in self.live:
            if one.state == "released":
                self.change(one, "supersede")
        self.supersede_candidates(but=model.version)
        if self.deployed is not None:
            self.archive(self.deployed)
        if own is None:
            done = self.begin(model.version, "release", strategy, 100.0, self.deployed)
        else:
            done = self.change(own, "release", strategy=strategy, percentage=100.0, agent_ids=())
        stored.move_model(self.connection, model.version, "deployed", self.author.now)
        self._switch()
        return done

    def supersede_candidates(self, but: str | None = None) -> None:
        for one in self.live:
            if one.state == "candidate" and one.version != but:
                self.change(one, "supersede")

    def archive(self, version: str) -> None:
        stored.move_model(self.connection, version, "archived", self.author.now)

    def earlier(self, target: str, current: str) -> Model | None:
        """The version to return to, None for the base."""
        if target == BASE:
            return None
        model = self.models.get(target)
        if model is None or model.deployed_at is None:
            raise ReleaseRefused(f"{target} was never deployed: `babylon-rl models deploy {target}` does it.")
        if target == current:
            raise ReleaseRefused(f"{target} is deployed already.")
        return model if model.foreign else self.deployable(target)

    def previous(self, released: Rollout) -> Model | None:
        """The version that was deployed before, None for the base: there, a rollback never fails."""
        try:
            return self.earlier(released.previous_version or BASE, released.version)
        except ReleaseRefused:
            return None

    def restore(self, model: Model | None) -> None:
        """Deploy an earlier version again; the one before it is next to return to."""
        # A foreign version was never archived, so it is the newest deployed one again.
        if model is not None and not model.foreign:
            ended = [one for one in stored.read_rollouts(self.connection, ("superseded", "rolled_back")) if one.version == model.version]
            self.begin(model.version, "release", "immediate", 100.0, ended[-1].previous_version if ended else None)
            stored.move_model(self.connection, model.version, "deployed", self.author.now)
        self._switch()

    def _switch(self) -> None:
        """With GAME_SWITCH name the deployed version to the game's own agents; one that only we serve switches theirs off."""
        if self.settings is None or not self.settings.game_switch:
            return
        table = stored.read_routing(self.connection)
        version = None if table.deployed is None else table.versions[table.deployed]
        name = version.model_name if version is not None and version.upstream == WANDB.name else None
        stored.switch_game(self.connection, name, self.author.now)
