"""Agents for tests: one that follows a script, and one that keeps what another sees."""

from collections.abc import Mapping

from babylon_rl.market.simulation.actions import Action, Hold, Invalid
from babylon_rl.market.simulation.agents import Agent, mandate_of
from babylon_rl.market.simulation.observation import Observation


class Script:
    """Does what stands beside a tick, else holds."""

    name = "script"

    def __init__(self, actions: Mapping[int, Action]) -> None:
        self._actions = actions

    def decide(self, seen: Observation) -> Action:
        return self._actions.get(seen.tick, Hold())


class Scribe:
    """Keeps every observation of another agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.mandate = mandate_of(agent)
        self.seen: list[Observation] = []

    @property
    def name(self) -> str:
        return self.agent.name

    def decide(self, seen: Observation) -> Action | Invalid:
        self.seen.append(seen)
        return self.agent.decide(seen)
