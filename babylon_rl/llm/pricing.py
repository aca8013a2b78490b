"""What tokens cost, by litellm's price table as it is installed (it is not fetched). None is an unknown price, never a free one."""

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
    """US dollars of one request to ``model`` (litellm's name); ``cached_tokens`` of the prompt were read from the provider's cache.

    None: the table does not know the model, or has only zeros for it, which stand for prices that it lacks.
    """
    if not is_priced(model):
        return None
    parts: tuple[float, float] = litellm_quietly().cost_per_token(
        model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cache_read_input_tokens=cached_tokens
    )
    return sum(parts)


def is_priced(model: str) -> bool:
    """Whether the table has a price of the model's tokens."""
    entry = table_entry(model) or {}
    return any(entry.get(name) for name in ("input_cost_per_token", "output_cost_per_token"))


@cache
def table_entry(model: str) -> dict[str, Any] | None:
    """The table's entry of the model; None where there is none. It is looked up here: litellm's own search may ask the net."""
    table = _table()
    provider, _, name = model.partition("/")
    if model in table:
        return table[model]
    entry = table.get(name)
    return entry if entry is not None and entry.get("litellm_provider") == provider else None


@cache
def _table() -> dict[str, dict[str, Any]]:
    """The file that litellm reads when told not to fetch it; without importing litellm, which takes a hundred times as long."""
    package = find_spec("litellm")
    assert package is not None and package.origin is not None
    found: dict[str, dict[str, Any]] = json.loads(
        (Path(package.origin).parent / "model_prices_and_context_window_backup.json").read_bytes()
    )
    return found


@cache
def litellm_quietly() -> Any:
    """litellm with its net access, its default transport and its messages switched off. Importing it takes 1.5 s."""
    for name, value in _LITELLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when it is imported
    import litellm

    litellm.disable_aiohttp_transport = True  # that transport takes a body cut off by a reset for whole
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.drop_params = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # a failed attempt is told once, by whoever asked
    return litellm
