"""Agents that ask a model: one served on this machine, at any URL, or behind a gateway.

A gateway chooses the version that answers, and records the call, as for live agents. Each of its agents has a client of its own and names
itself in every request. A trajectory's id is fixed before its call, so that the gateway's row of llm_call_logs belongs to a trajectory that
is written later; the trajectory itself then holds no calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import ModelUnavailable, UsageError
from babylon_rl.llm.client import ChatAnswer, ChatClient
from babylon_rl.market.simulation.agents import AgentFactory, Decision
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.model_agent import ModelAgent, model_agent
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import Call
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.checkpoint_store import absence, checkpoint_to_serve
from babylon_rl.models.server_process import running_server
from babylon_rl.models.threads import usable_cores
from babylon_rl.recorder.core import new_uuid
from babylon_rl.settings import Settings

BASE = "base"
GATEWAY_MODEL = "auto"  # leaves the choice to the gateway
ACTION_TYPE = "TRADING_DECISION"


@contextmanager
def served_here(settings: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
    """Serve the CPU base and adapters on loopback; yields the base URL."""
    with running_server(base_model_dir(settings), dict(adapters), threads=usable_cores()) as server:
        yield server.url


@contextmanager
def model_agents(settings: Settings, model: str, *, temperature: float, game: Game = ONE_TICK_GAME) -> Iterator[AgentFactory]:
    """Yield a factory of agents that ask a model in a game, sampled as in training.

    ``model`` is ``base``, a version here or at MODEL_STORAGE_URL, or ``MODEL@URL``.

    Raises:
        ModelUnavailable: there is no such version, or it cannot be fetched now.
        CheckpointError: another checkpoint than the registered one is here.
        UsageError: URL is not one.
    """
    name, _, url = model.partition("@")
    if url:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{model!r}: write MODEL@URL with a URL such as http://127.0.0.1:8000/v1.")
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
        with ChatClient(url, key, name) as client:
            yield model_agent(client, game=game, temperature=temperature)
        return
    adapters = {}
    if name != BASE:
        directory = checkpoint_to_serve(name, settings)
        if directory is None:
            raise ModelUnavailable(f"{absence(name, settings)} `babylon-rl models` lists the versions; base is always there.")
        adapters = {name: directory}
    with served_here(settings, adapters) as local, ChatClient(local, None, name) as client:
        yield model_agent(client, game=game, temperature=temperature)


class GatewayCall(Call, frozen=True, kw_only=True):
    """A call that the gateway records, with its trajectory's id."""

    trajectory_id: str


class GatewayClient(ChatClient):
    """Client of one agent at a gateway. Each call is the first of a new trajectory, ``trajectory_id``."""

    def __init__(self, base_url: str, key: str | None, agent_id: str) -> None:
        super().__init__(base_url, key, GATEWAY_MODEL)
        self.trajectory_id, self._agent_id = "", agent_id

    async def complete(self, messages: Sequence[dict[str, Any]], *, headers: Mapping[str, str] | None = None, **options: Any) -> ChatAnswer:
        """Ask as this agent, in a new trajectory."""
        self.trajectory_id = new_uuid()
        place = {
            "x-babylon-agent": self._agent_id, "x-babylon-trajectory": self.trajectory_id, "x-babylon-step": "0",
            "x-babylon-action-type": ACTION_TYPE,
        }  # fmt: skip
        return await super().complete(messages, headers={**place, **(headers or {})}, **options)


class GatewayAgent(ModelAgent):
    """A model agent whose calls are recorded by the gateway that it asks."""

    def __init__(self, client: GatewayClient, agent_id: str, seed: int | str, temperature: float, game: Game) -> None:
        super().__init__(client, agent_id, seed, temperature=temperature, game=game)
        self._gateway = client

    def ask(self, seen: Observation) -> Decision:
        """The decision, with a call that says where it is recorded."""
        answer = super().ask(seen)
        assert answer.call is not None
        return Decision(answer.action, GatewayCall(**msgspec.structs.asdict(answer.call), trajectory_id=self._gateway.trajectory_id))


@contextmanager
def gateway_agents(url: str, key: str | None, *, temperature: float, game: Game = ONE_TICK_GAME) -> Iterator[AgentFactory]:
    """Yield a factory of agents that ask the gateway at ``url`` in a game, sampled as in training."""
    clients: dict[str, GatewayClient] = {}
    with ExitStack() as stack:

        def make(agent_id: str, seed: int | str) -> GatewayAgent:
            if agent_id not in clients:
                clients[agent_id] = stack.enter_context(GatewayClient(url, key, agent_id))
            return GatewayAgent(clients[agent_id], agent_id, seed, temperature, game)

        yield make
