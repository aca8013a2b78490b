"""An agent that asks a language model for every decision, at any endpoint of the OpenAI chat-completions interface.

The answer is constrained to a finite schema where the endpoint can do that; one that does not fit is ``Invalid``, counted by its reason,
and costs the turn. An endpoint that stays down raises ModelUnavailable, which ends the run there.
"""

import hashlib
from functools import partial

from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation import prompting
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import AgentFactory, Decision, Mandate
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import Call


def request_seed(*parts: object) -> int:
    """A seed for one request, 0 to 2^31 - 1. The same for the same parts on every platform."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


class ModelAgent:
    """One seat whose decisions come from ``client``'s model.

    Args:
        game: its prompt and the schema of its answers; a checkpoint is asked as it was trained.
        name: in reports; the model's by default.
    """

    def __init__(
        self,
        client: ChatClient,
        agent_id: str,
        seed: int | str,
        *,
        game: Game = ONE_TICK_GAME,
        temperature: float = 1.0,
        name: str | None = None,
    ) -> None:
        self.name = name if name is not None else client.model
        self.mandate: Mandate = game.mandate
        self._client = client
        self._seed = f"{seed}/{agent_id}"
        self._game = game
        self._temperature = temperature

    def decide(self, seen: Observation) -> Action | Invalid:
        return self.ask(seen).action

    def ask(self, seen: Observation) -> Decision:
        """The model's decision, with the request and the answer.

        Raises:
            ModelUnavailable: the endpoint stays down, or answers something else than a chat completion.
        """
        messages, schema = prompting.request(seen, self._game)
        # the prompt is part of the seed: otherwise every market would draw the same numbers at the same tick
        seed = request_seed(self._seed, seen.tick, messages[-1]["content"])
        answer = self._client.complete_now(
            messages, response_format=schema, temperature=self._temperature, seed=seed, max_tokens=self._game.max_tokens
        )
        call = Call(
            answer.model, messages, answer.text, self._game.prompt_version, schema, answer.logprobs, answer.latency_ms,
            answer.prompt_tokens, answer.completion_tokens, self._temperature, self._game.max_tokens, answer.finish_reason,
        )  # fmt: skip
        return Decision(prompting.ordered(answer.text, seen, self._game), call)


def model_agent(client: ChatClient, *, game: Game = ONE_TICK_GAME, temperature: float = 1.0, name: str | None = None) -> AgentFactory:
    """A factory of `ModelAgent`s."""
    return partial(ModelAgent, client, game=game, temperature=temperature, name=name)
