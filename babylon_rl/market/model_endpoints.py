"""Model endpoints for agents: a model served on this machine, or any URL."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from babylon_rl.errors import ModelUnavailable, UsageError
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.agents import AgentFactory
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.checkpoint_store import absence, checkpoint_named
from babylon_rl.models.server_process import running_server
from babylon_rl.models.threads import usable_cores
from babylon_rl.settings import Settings

BASE = "base"


@contextmanager
def served_here(settings: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
    """Serve the CPU base and adapters on loopback; yields the base URL."""
    with running_server(base_model_dir(settings), dict(adapters), threads=usable_cores()) as server:
        yield server.url


@contextmanager
def model_agents(settings: Settings, model: str, *, temperature: float) -> Iterator[AgentFactory]:
    """Yield a factory of agents that ask a model, sampled as in training.

    ``model`` is ``base``, a version here or at MODEL_STORAGE_URL, or ``MODEL@URL``.

    Raises:
        ModelUnavailable: there is no such version here.
        UsageError: URL is not one.
    """
    name, _, url = model.partition("@")
    if url:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{model!r}: write MODEL@URL with a URL such as http://127.0.0.1:8000/v1.")
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
        with ChatClient(url, key, name) as client:
            yield model_agent(client, temperature=temperature)
        return
    adapters = {}
    if name != BASE:
        directory = checkpoint_named(name, settings)
        if directory is None:
            raise ModelUnavailable(f"{absence(name, settings)} `babylon-rl models` lists the versions; base is always there.")
        adapters = {name: directory}
    with served_here(settings, adapters) as local, ChatClient(local, None, name) as client:
        yield model_agent(client, temperature=temperature)
