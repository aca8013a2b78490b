"""An agent that asks a language model for every decision.

It asks any endpoint of the OpenAI chat-completions interface.

The answer is constrained to a finite schema where the endpoint can do that; one that does not fit is ``Invalid``, counted by its reason,
and costs the turn. An endpoint that stays down raises ModelUnavailable, which ends the run there.
"""

import hashlib

from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation import prompting
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD, AgentFactory, Decision, Mandate, order
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import Call

MAX_TOKENS = {"one-tick": 48, "free": 96}


def request_seed(*parts: object) -> int:
    """A seed for one request, 0 to 2^31 - 1. The same for the same parts on every platform."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


class ModelAgent:
    """One seat whose decisions come from ``client``'s model.

    Args:
        mandate: ``one-tick`` asks for buy, sell or hold with a fixed stake, as policies are trained; ``free`` for actions in full.
        prompt_version: ``trader-v1`` or ``trader-v2``; a checkpoint is asked as it was trained.
        name: in reports; the model's by default.

    Raises:
        MarketError: no such prompt, or one without words for the mandate.
    """

    def __init__(
        self,
        client: ChatClient,
        agent_id: str,
        seed: int | str,
        *,
        mandate: Mandate = ONE_TICK,
        prompt_version: str = prompting.TRADER_V1,
        stake_usd: float = STAKE_USD,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name if name is not None else client.model
        self.mandate: Mandate = mandate
        self._client = client
        self._seed = f"{seed}/{agent_id}"
        self._version = prompting.checked_version(prompt_version, mandate)
        self._stake_usd = stake_usd
        self._temperature = temperature
        self._max_tokens = max_tokens if max_tokens is not None else MAX_TOKENS[mandate]

    def decide(self, seen: Observation) -> Action | Invalid:
        """The model's decision."""
        return self.ask(seen).action

    def ask(self, seen: Observation) -> Decision:
        """The model's decision, with the request and the answer.

        Raises:
            ModelUnavailable: the endpoint stays down, or answers something else than a chat completion.
        """
        one_tick = self.mandate == ONE_TICK
        schema = prompting.choice_format(seen) if one_tick else prompting.action_format(seen)
        messages = prompting.messages(seen, self._version, self.mandate)
        # the prompt is part of the seed: otherwise every market would draw the same numbers at the same tick
        seed = request_seed(self._seed, seen.tick, messages[-1]["content"])
        answer = self._client.complete_now(
            messages, response_format=schema, temperature=self._temperature, seed=seed, max_tokens=self._max_tokens
        )
        call = Call(
            answer.model, messages, answer.text, self._version, schema, answer.logprobs, answer.latency_ms, answer.prompt_tokens,
            answer.completion_tokens, self._temperature, self._max_tokens, answer.finish_reason,
        )  # fmt: skip
        if not one_tick:
            return Decision(prompting.parse_full(answer.text, seen), call)
        choice = prompting.parse_choice(answer.text, seen)
        return Decision(choice if isinstance(choice, Invalid) else order(choice, seen, self._stake_usd), call)


def model_agent(
    client: ChatClient,
    *,
    mandate: Mandate = ONE_TICK,
    prompt_version: str = prompting.TRADER_V1,
    stake_usd: float = STAKE_USD,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    name: str | None = None,
) -> AgentFactory:
    """A factory of `ModelAgent`s; wrong arguments raise here, not in the middle of a run. Raises MarketError: as ``ModelAgent``."""
    prompting.checked_version(prompt_version, mandate)

    def make(agent_id: str, seed: int | str) -> ModelAgent:
        return ModelAgent(
            client, agent_id, seed, mandate=mandate, prompt_version=prompt_version, stake_usd=stake_usd, temperature=temperature,
            max_tokens=max_tokens, name=name,
        )  # fmt: skip

    return make
