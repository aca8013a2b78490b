"""Agents that ask a gateway, as live agents do.

The gateway chooses the version that answers, and records the call.

Each agent has a client of its own and names itself in every request. A trajectory's id is fixed before its call, so that the gateway's row
of llm_call_logs belongs to a trajectory that is written later; the trajectory itself then holds no calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from babylon_rl.llm.client import ChatAnswer, ChatClient
from babylon_rl.market.simulation.agents import AgentFactory, Answer
from babylon_rl.market.simulation.model_agent import ModelAgent
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import Call
from babylon_rl.recorder.core import new_uuid

MODEL = "auto"  # leaves the choice to the gateway
ACTION_TYPE = "TRADING_DECISION"


class GatewayCall(Call, frozen=True, kw_only=True):
    """A call that the gateway records, in the trajectory of this id."""

    trajectory_id: str


class GatewayClient(ChatClient):
    """Client of one agent at a gateway.

    Each call is the first of a new trajectory, ``trajectory_id``.
    """

    def __init__(self, base_url: str, key: str | None, agent_id: str, new_id: Callable[[], str]) -> None:
        super().__init__(base_url, key, MODEL)
        self.trajectory_id = ""
        self._agent_id, self._new_id = agent_id, new_id

    async def complete(self, messages: Sequence[dict[str, Any]], *, headers: Mapping[str, str] | None = None, **options: Any) -> ChatAnswer:
        """Ask as this agent, in a new trajectory."""
        self.trajectory_id = self._new_id()
        place = {
            "x-babylon-agent": self._agent_id, "x-babylon-trajectory": self.trajectory_id, "x-babylon-step": "0",
            "x-babylon-action-type": ACTION_TYPE,
        }  # fmt: skip
        return await super().complete(messages, headers={**place, **(headers or {})}, **options)


class GatewayAgent(ModelAgent):
    """A model agent whose calls are recorded by the gateway that it asks."""

    def __init__(self, client: GatewayClient, agent_id: str, seed: int | str, temperature: float) -> None:
        super().__init__(client, agent_id, seed, temperature=temperature)
        self._gateway = client

    def ask(self, seen: Observation) -> Answer:
        """The decision, with a call that says where it is recorded."""
        answer = super().ask(seen)
        assert answer.call is not None
        return Answer(answer.action, GatewayCall(**msgspec.structs.asdict(answer.call), trajectory_id=self._gateway.trajectory_id))


@contextmanager
def gateway_agents(url: str, key: str | None, *, temperature: float, new_id: Callable[[], str] = new_uuid) -> Iterator[AgentFactory]:
    """Yield a factory of agents that ask the gateway at ``url``, sampled as in training."""
    clients: dict[str, GatewayClient] = {}
    with ExitStack() as stack:

        def make(agent_id: str, seed: int | str) -> GatewayAgent:
            if agent_id not in clients:
                clients[agent_id] = stack.enter_context(GatewayClient(url, key, agent_id, new_id))
            return GatewayAgent(clients[agent_id], agent_id, seed, temperature)

        yield make
