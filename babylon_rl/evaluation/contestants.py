"""Who enters a benchmark: agents of the roster, models behind an endpoint, anybody's own agent; each known by what decides, not by name.

Agents play under one mandate, alone in each market, in the same seat and, for one tick, with the same stake, so that only decisions differ.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from babylon_rl.evaluation.result_building import Market
from babylon_rl.evaluation.run_files import ANSWERS, RememberingClient, RunFiles
from babylon_rl.market import simulation
from babylon_rl.market.simulation import prompting
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD, AgentFactory, Mandate
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.roster import factory
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.models.client import ChatClient
from babylon_rl.versions import content_version

STRATEGY, MODEL = "strategy", "model"
TEMPERATURE = 0.0

Make = Callable[[Market, RunFiles], AgentFactory]


@dataclass(frozen=True)
class Contestant:
    """An agent that plays every market.

    Attributes:
        name: in tables. identity: a hash of what decides; results of another identity are another agent's.
        asks: whether it waits for somebody else, so that several of its markets are played at once.
        make: a factory of its agents for one market, and the files of the run.
    """

    name: str
    identity: str
    role: str
    mandate: Mandate
    asks: bool
    make: Make


def scripted(name: str, mandate: Mandate = ONE_TICK) -> Contestant:
    """An agent of the roster; its identity changes with the engine's code.

    Raises:
        MarketError: there is none of that name; when it first plays.
    """
    identity = content_version(["roster", name, mandate, engine_version()])
    return Contestant(name, identity, STRATEGY, mandate, False, lambda market, _: seated(name, market.scenario, mandate))


def seated(name: str, scenario: Scenario, mandate: Mandate) -> AgentFactory:
    """An agent of the roster as everybody plays: for one tick with the stake of all, for longer with its own."""
    return factory(name, scenario, mandate, stake_usd=STAKE_USD if mandate == ONE_TICK else None)


def asked(
    open_client: Callable[[], ChatClient],
    name: str,
    identity: str,
    mandate: Mandate = ONE_TICK,
    *,
    temperature: float = TEMPERATURE,
    prompt: str | None = None,
) -> Contestant:
    """A model behind an endpoint.

    Args:
        open_client: gives the client, each time the same; called when there is something to ask, from several threads.
        identity: of what is served: a hash of weights, or the endpoint's address and the model's name.
        prompt: a version of the prompt; by default what policies of that mandate are trained on.

    Raises:
        MarketError: no such prompt, or none for that mandate.
    """
    version = prompting.checked_version(prompt or default_prompt(mandate), mandate)

    def make(_: Market, files: RunFiles) -> AgentFactory:
        remembering = RememberingClient(open_client(), files.path(ANSWERS))
        return model_agent(remembering, mandate=mandate, prompt_version=version, temperature=temperature, name=name)

    return Contestant(name, content_version(["model", identity, mandate, version, temperature]), MODEL, mandate, True, make)


def outside(name: str, mandate: str) -> str:
    """The identity of an agent that plays over HTTP: of what decides there nothing is known but what it calls itself."""
    return content_version(["outside", name, mandate])


def default_prompt(mandate: Mandate) -> str:
    """The version of the prompt that policies of a mandate are asked with."""
    return prompting.TRADER_V1 if mandate == ONE_TICK else prompting.TRADER_V2


@cache
def engine_version() -> str:
    """A hash of the code that moves markets, money and scripts and of the prompts: results of two versions of it are not mixed unseen."""
    found = hashlib.sha256()
    code = Path(simulation.__path__[0])
    for path in [*sorted(code.glob("*.py")), *sorted((code.parent / "prompts").glob("*.txt"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
