"""Token prices from litellm's installed table, which is never fetched.

None is an unknown price, never a free one.
"""

import json
import logging
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else the table comes from the net
    "LITELLM_MODE": "PRODUCTION",  # else a .env above litellm's own folder becomes part of this process's environment
}


def price(model: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float | None:
    """US dollars of one request to ``model`` (litellm's name); None where unknown.

    ``cached_tokens`` of the prompt were read from the provider's cache. The price is unknown where the table does not know the model,
    or has only zeros for it, which stand for missing prices.
    """
    if not is_priced(model):
        return None
    parts: tuple[float, float] = litellm_quietly().cost_per_token(
        model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cache_read_input_tokens=cached_tokens
    )
    return sum(parts)


def is_priced(model: str) -> bool:
    """True if the table has a price for the model's tokens."""
    entry = table_entry(model) or {}
    return any(entry.get(name) for name in ("input_cost_per_token", "output_cost_per_token"))


@cache
def table_entry(model: str) -> dict[str, Any] | None:
    """Table entry of the model, None without one.

    It is looked up here because litellm's own search may use the network.
    """
    table = _table()
    provider, _, name = model.partition("/")
    if model in table:
        return table[model]
    entry = table.get(name)
    return entry if entry is not None and entry.get("litellm_provider") == provider else None


@cache
def _table() -> dict[str, dict[str, Any]]:
    """Litellm's local price file, read without importing litellm.

    The import takes a hundred times as long.
    """
    package = find_spec("litellm")
    assert package is not None and package.origin is not None
    table: dict[str, dict[str, Any]] = json.loads(
        (Path(package.origin).parent / "model_prices_and_context_window_backup.json").read_bytes()
    )
    return table


@cache
def litellm_quietly() -> Any:
    """Import litellm with network access, default transport and messages off; takes 1.5 s."""
    for name, value in _LITELLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when it is imported
    import litellm

    litellm.disable_aiohttp_transport = True  # that transport takes a body cut off by a reset for whole
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # a failed attempt is reported once, by the caller
    return litellm
