"""Players of a benchmark, identified by weights, prompt or code, not by name.

Players play under one mandate, alone in each market and, for one tick, with the same stake, so that only decisions differ.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.run_files import resumable_client
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.llm.client import ChatClient
from babylon_rl.market import simulation
from babylon_rl.market.simulation import prompting, roster
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD, AgentFactory, Mandate
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.versions import content_version

STRATEGY, MODEL = "strategy", "model"
TEMPERATURE = 0.0

Make = Callable[[Snapshot, Path | None], AgentFactory]


@dataclass(frozen=True)
class Player:
    """An agent that plays every market.

    Attributes:
        name: in tables. identity: a hash of what decides; results of another identity are another player's.
        asks: whether it waits for an endpoint, so that several of its markets are played at once.
        make: the factory of its agents for one market; the path is where a model's answers are kept while the run lasts.
    """

    name: str
    identity: str
    role: str
    mandate: Mandate
    asks: bool
    make: Make


def scripted(name: str, mandate: Mandate = ONE_TICK) -> Player:
    """A strategy of the roster; its identity changes with the engine's code.

    Raises:
        MarketError: there is none of that name.
    """
    if name not in roster.NAMES:
        raise MarketError(f"There is no strategy {name!r}; there are {', '.join(roster.NAMES)}.")
    # Strategies are code: another engine is another player.
    identity = content_version(["roster", name, mandate, engine_version()])
    return Player(name, identity, STRATEGY, mandate, False, lambda snapshot, _: strategy_agent(name, snapshot.scenario, mandate))


def strategy_agent(name: str, scenario: Scenario, mandate: Mandate) -> AgentFactory:
    """Agents of a strategy; for one tick with the common stake, else with its own."""
    return roster.factory(name, scenario, mandate, stake_usd=STAKE_USD if mandate == ONE_TICK else None)


def endpoint_player(
    open_client: Callable[[], ChatClient],
    name: str,
    identity: str,
    mandate: Mandate = ONE_TICK,
    *,
    temperature: float = TEMPERATURE,
    prompt: str | None = None,
) -> Player:
    """A model behind an endpoint.

    Args:
        open_client: gives the client, each time the same; called when there is something to ask, from several threads.
        identity: of the served model: a hash of weights, or the endpoint's address and the model's name.
        prompt: a version of the prompt; by default the one that policies of that mandate are trained on.

    Raises:
        MarketError: no such prompt, or none for that mandate.
    """
    default = prompting.TRADER_V1 if mandate == ONE_TICK else prompting.TRADER_V2
    version = prompting.checked_version(prompt or default, mandate)

    def make(_: Snapshot, answers: Path | None) -> AgentFactory:
        # Opened by the run that needs it, which may be in another thread.
        client = open_client() if answers is None else resumable_client(open_client(), answers)
        return model_agent(client, mandate=mandate, prompt_version=version, temperature=temperature, name=name)

    return Player(name, content_version(["model", identity, mandate, version, temperature]), MODEL, mandate, True, make)


def external_identity(name: str, mandate: str) -> str:
    """Identity of an agent that plays over HTTP, from its name and mandate."""
    return content_version(["outside", name, mandate])


@cache
def engine_version() -> str:
    """Hash of the code of markets, strategies and prompts.

    Results of two versions are never mixed unseen.
    """
    digest = hashlib.sha256()
    code = Path(simulation.__path__[0])
    # Sorted, so that the hash is the same on every file system.
    for path in [*sorted(code.glob("*.py")), *sorted((code.parent / "prompts").glob("*.txt"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
