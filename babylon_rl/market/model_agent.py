"""Agents that ask a language model for every decision, over the OpenAI chat-completions interface."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from babylon_rl.market.agents import MODEL_STAKE_USD, Decision, Observation, messages, parse_decision, response_format
from babylon_rl.market.play import Ask, Call, Player
from babylon_rl.models.client import ChatClient

MAX_TOKENS = 48


def model_player(agent_id: str) -> Player:
    """A player whose decisions come from a model."""
    return Player(agent_id, "llm", MODEL_STAKE_USD)


def decision_seed(*parts: object) -> int:
    """A seed for one request, the same for the same parts on every platform."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


def ask_model(client: ChatClient, temperature: float, *seed: object) -> Ask:
    """Ask ``client`` for the decisions of a tick, all of them at once.

    The answer is constrained to the action schema over the markets shown; one that does not fit it is a hold that says why.
    An endpoint that stays down raises ModelUnavailable.
    """

    def one(item: tuple[Player, Observation, int]) -> tuple[Decision, Call]:
        player, seen, tick = item
        schema, prompt = response_format(seen.markets), messages(seen)
        # the prompt is part of the seed: otherwise every hour would draw the same numbers at the same tick
        one_seed = decision_seed(*seed, player.agent_id, tick, prompt[-1]["content"])
        answer = client.complete_now(prompt, response_format=schema, temperature=temperature, seed=one_seed, max_tokens=MAX_TOKENS)
        call = Call(
            answer.model,
            prompt,
            answer.text,
            schema,
            answer.logprobs,
            answer.latency_ms,
            answer.prompt_tokens,
            answer.completion_tokens,
            temperature,
            MAX_TOKENS,
        )
        return parse_decision(answer.text, seen.markets), call

    def ask(items: list[tuple[Player, Observation, int]]) -> list[tuple[Decision, Call]]:
        if len(items) == 1:
            return [one(items[0])]
        with ThreadPoolExecutor(max_workers=len(items)) as pool:
            return list(pool.map(one, items))

    return ask
