"""Tokens a second of `serve model`: `python -m benchmarks.serve_model [--clients 8] [--rounds 3] [--tokens 32]`.

In one run, with prompts of about the same length, the same threads and dtype: the server asked by one client after another and by all at
once (each client asks its next request when it has its answer; the first are spread over a second), free text and decisions under a
grammar, which may be of two adapters, by clients with one system prompt or each with its own; and transformers' continuous batching in
process, with the paged sdpa attention that it chooses on a CPU and all requests at once. It has no grammar, so that it answers free text
alone. No prompt is asked twice of the server, which keeps what it has read. Prints a JSON line for each.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from babylon_rl.llm.client import ChatClient
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.server_process import running_server
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import load_settings

REQUESTS_PER_CLIENT = 2
ADAPTER = "v1.0.0"
TRANSFORMERS = "transformers, continuous batching"
_TOPICS = ("elections", "rivers", "engines", "clouds", "harvests", "markets", "planets", "violins")
_SIZES = (1, 2, 5, 10)
_TRADES = [
    {"type": "object", "properties": {"action": {"const": action}, "size": {"enum": list(_SIZES)}}, "required": ["action", "size"]}
    for action in ("buy", "sell", "hold")
]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "trade", "schema": {"anyOf": _TRADES}}}


def messages(number: int, name: str = "trading agent 0") -> list[dict[str, Any]]:
    """A prompt of about 350 tokens, most of them the same in all of one ``name``."""
    topic = _TOPICS[number % len(_TOPICS)]
    system = f"You are {name} in a market of companies and questions. " * 20
    return [{"role": "system", "content": system}, {"role": "user", "content": f"Round {number}: {topic}. " + f"News of {topic}. " * 10}]


_asked = itertools.count()


async def ask(url: str, clients: int, tokens: int, *, at_once: bool, named: bool = False, **asked: Any) -> tuple[int, float]:
    """Tokens of all answers, and seconds; ``named`` clients have a system prompt of their own."""
    used = 0
    async with ChatClient(url, None, "base") as base, ChatClient(url, None, ADAPTER) as adapter:

        async def play(client: int) -> None:
            nonlocal used
            await asyncio.sleep(client / clients if at_once else 0)
            for number in range(REQUESTS_PER_CLIENT):
                served = adapter if asked.get("response_format") and client % 2 else base
                # Answers of several lengths: who asks for little must not wait for the longest.
                most = tokens * (1 + client % 4) // 4
                prompt = messages(next(_asked), f"trading agent {client + 1 if named else 0}")
                answer = await served.complete(prompt, seed=number, max_tokens=most, **asked)
                used += answer.completion_tokens

        began = time.perf_counter()
        if at_once:
            await asyncio.gather(*map(play, range(clients)))
        else:
            for client in range(clients):
                await play(client)
        return used, time.perf_counter() - began


def transformers_batching(base: Path, clients: int, tokens: int) -> Callable[[], tuple[int, float]]:
    """transformers' continuous batching of the same free texts, all of them given at once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from babylon_rl.models.device import best_dtype
    from babylon_rl.models.encoding import encode_prompt

    set_threads(usable_cores())
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=best_dtype()).eval()
    prompts = [list(encode_prompt(tokenizer, messages(number))) for number in range(clients * REQUESTS_PER_CLIENT)]
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=2, pad_token_id=2)

    def together() -> tuple[int, float]:
        pages = ContinuousBatchingConfig(num_blocks=512, page_size=32, max_batch_tokens=1024)
        used, began = 0, time.perf_counter()
        with model.continuous_batching_context_manager(generation_config=config, continuous_batching_config=pages) as batching:
            for number, prompt in enumerate(prompts):
                batching.add_request(prompt, max_new_tokens=tokens * (1 + number % clients % 4) // 4)
            for _ in prompts:
                while (result := batching.get_result(timeout=1)) is None:
                    pass
                used += len(result.generated_tokens)
        return used, time.perf_counter() - began

    return together


def main() -> None:
    """Measure the sides in turn and print their medians and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    base, clients, tokens = base_model_dir(load_settings()), options.clients, options.tokens
    from babylon_rl_tests.tiny_model import make_adapter

    with tempfile.TemporaryDirectory() as folder:
        adapter = make_adapter(base, Path(folder, "adapter"))
        with running_server(base, {ADAPTER: adapter}, threads=usable_cores()) as server:

            def served(at_once: bool, **asked: Any) -> Callable[[], tuple[int, float]]:
                return lambda: asyncio.run(ask(server.url, clients, tokens, at_once=at_once, **asked))

            sides = {
                "decisions, one by one": served(False, response_format=_FORMAT),
                f"decisions, {clients} clients": served(True, response_format=_FORMAT),
                f"decisions, {clients} clients with their own system prompts": served(True, named=True, response_format=_FORMAT),
                "free text, one by one": served(False),
                f"free text, {clients} clients": served(True),
                TRANSFORMERS: transformers_batching(base, clients, tokens),
            }
            rates: dict[str, list[float]] = {name: [] for name in sides}
            # Side by side within each round: other work on the machine hits all of them.
            for _ in range(options.rounds):
                for name, measure in sides.items():
                    used, seconds = measure()
                    rates[name].append(used / seconds)
                    print(json.dumps({"side": name, "tokens": used, "tokens_a_second": round(rates[name][-1], 1)}), flush=True)
    print(json.dumps({"tokens_a_second": {name: round(statistics.median(those), 1) for name, those in rates.items()}}))
    pairs = [(f"decisions, {clients} clients", "decisions, one by one"), (f"free text, {clients} clients", "free text, one by one")]
    pairs += [(f"free text, {clients} clients", TRANSFORMERS)]
    pairs += [(f"decisions, {clients} clients with their own system prompts", f"decisions, {clients} clients")]
    for ours, other in pairs:
        ratio = statistics.median(one / two for one, two in zip(rates[ours], rates[other], strict=True))
        print(json.dumps({"side": ours, "times": round(ratio, 2), "of": other}))


if __name__ == "__main__":
    main()
