"""Token counts and token prices of models, from files installed with litellm; nothing is fetched.

OpenAI's models are counted with their own encodings; any other model is estimated with a margin. A price of None is unknown, never free.
"""

import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from babylon_rl.errors import require
from babylon_rl.heap import return_freed_memory

N = TypeVar("N", int, float)

_LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else the table comes from the net
    "LITELLM_MODE": "PRODUCTION",  # else a .env above litellm's own folder becomes part of this process's environment
}
MARGIN = 1.2  # allowance for other tokenizers; not measured
BYTES_PER_TOKEN = 3  # where no encoding is installed
_NEWER = "o200k_base"
_OLDER = "cl100k_base"
_OLDER_MODELS = ("gpt-4-", "gpt-3.5", "text-embedding")
_OWN = ("gpt-", "o1", "o3", "o4", "chatgpt-")


def price(model: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float | None:
    """US dollars of one request to ``model`` (litellm's name); None where unknown.

    ``cached_tokens`` of the prompt were read from the provider's cache. The price is unknown where the table does not know the model,
    or has only zeros for it, which stand for missing prices.
    """
    if not is_priced(model):
        return None
    by_tokens = _price_by_tokens(table_entry(model) or {}, prompt_tokens, completion_tokens, cached_tokens)
    if by_tokens is not None:
        return by_tokens
    parts: tuple[float, float] = litellm_quietly().cost_per_token(
        model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cache_read_input_tokens=cached_tokens
    )
    return sum(parts)


def _price_by_tokens(entry: Mapping[str, Any], prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> float | None:
    """Price of an OpenAI model with one price for each kind of token; None for others.

    Litellm knows the others' rules; its import takes 110 MB, more than a large judged hour.
    """
    uncached, cached = entry.get("input_cost_per_token"), entry.get("cache_read_input_token_cost")
    completed = entry.get("output_cost_per_token")
    tiered = any("_above_" in name for name in entry)
    if entry.get("litellm_provider") != "openai" or tiered or uncached is None or completed is None or (cached is None and cached_tokens):
        return None
    return float((prompt_tokens - cached_tokens) * uncached + cached_tokens * (cached or 0.0) + completion_tokens * completed)


def known_sum(values: Iterable[N | None]) -> N | None:
    """Sum of token counts or dollars; None if one of them is unknown."""
    counts = list(values)
    return None if None in counts else sum(count for count in counts if count is not None)


def is_priced(model: str) -> bool:
    """True if the table has a price for the model's tokens."""
    entry = table_entry(model) or {}
    return any(entry.get(name) for name in ("input_cost_per_token", "output_cost_per_token"))


@functools.cache
def table_entry(model: str) -> dict[str, Any] | None:
    """Table entry of the model, None without one. It is looked up here because litellm's own search may use the network."""
    table = _table()
    provider, _, name = model.partition("/")
    if model in table:
        return table[model]
    entry = table.get(name)
    return entry if entry is not None and entry.get("litellm_provider") == provider else None


def _table() -> dict[str, dict[str, Any]]:
    """Litellm's local price file, read without importing litellm.

    The import takes a hundred times as long. Not kept: it takes 10 MB, and few models are looked up.
    """
    package = find_spec("litellm")
    assert package is not None and package.origin is not None
    table: dict[str, dict[str, Any]] = json.loads(
        (Path(package.origin).parent / "model_prices_and_context_window_backup.json").read_bytes()
    )
    return table


@functools.cache
def litellm_quietly() -> Any:
    """Import litellm with network access, default transport and messages off; takes 1.5 s."""
    for name, value in _LITELLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when it is imported
    require("litellm")
    import litellm

    litellm.disable_aiohttp_transport = True  # that transport takes a body cut off by a reset for whole
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # a failed attempt is reported once, by the caller
    return litellm


@functools.lru_cache(maxsize=16)
def token_counter(model: str) -> Callable[[str], int]:
    """Counter of a text's tokens for a litellm model name; an estimate where the tokenizer is unknown."""
    provider, _, name = model.rpartition("/")
    own = name.startswith(_OWN) and provider in ("", "openai", "azure")
    encoding = _OLDER if own and (name == "gpt-4" or name.startswith(_OLDER_MODELS)) else _NEWER
    encode = _encoder(encoding)
    if encode is None:
        return lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
    return encode if own else lambda text: math.ceil(encode(text) * MARGIN)


def forget_encodings() -> None:
    """Free the 44 MB of tokenizers that ``token_counter`` loads again in half a second."""
    token_counter.cache_clear()
    _encoder.cache_clear()
    if "tiktoken" in sys.modules:
        from tiktoken.registry import ENCODINGS

        ENCODINGS.clear()
    return_freed_memory()


@functools.lru_cache(maxsize=4)
def _encoder(encoding: str) -> Callable[[str], int] | None:
    """Token count in a tiktoken encoding that litellm ships; None if it is missing."""
    package = find_spec("litellm")
    if package is None or package.origin is None or find_spec("tiktoken") is None:
        return None
    folder = Path(package.origin).parent / "litellm_core_utils" / "tokenizers"
    if not folder.is_dir():
        return None
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))  # as litellm does when it is imported
    import tiktoken

    try:
        tokenizer = tiktoken.get_encoding(encoding)
    except (OSError, ValueError):
        return None
    tokenizer._mergeable_ranks = {}  # its core has a copy of these 27 MB, and nothing else reads them
    ordinary = tokenizer.encode_ordinary
    return lambda text: len(ordinary(text.encode("utf-8", "replace").decode()))
