"""Python API for agents that call a model server themselves.

The names are those of the game's own functions. Routing is the gateway's (routing.py), from a table that is read again after MAX_AGE_S, so
that a release or rollback is seen within a second. Calls made so are not recorded: record them with babylon_rl.recorder.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from babylon_rl.errors import DatabaseError, ModelUnavailable, require
from babylon_rl.llm.client import ChatClient
from babylon_rl.llm.transports import with_version
from babylon_rl.models.checkpoint_store import registered_checkpoint
from babylon_rl.models.checkpoints import read_remote
from babylon_rl.services import SERVICES
from babylon_rl.serving.routing import Route, base_route, route
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import process_database
from babylon_rl.store.releases import RoutedVersion, RoutingTable, read_routing

if TYPE_CHECKING:
    from openai import OpenAI

MAX_AGE_S = 0.5


@dataclass(frozen=True, slots=True)
class RLModelConfig:
    """Settings of which model agents get; ``available``: a version is deployed, on trial, pinned or named by WANDB_MODEL."""

    enabled: bool
    available: bool
    pinned_version: str | None
    wandb_model: str | None
    base_model: str
    fallback_to_base: bool
    rollout_percentage: float


@dataclass(frozen=True, slots=True)
class InferenceModel:
    """A model that an agent calls as ``model`` at ``base_url`` with ``api_key``; ``version`` is None for the base."""

    version: str | None
    model: str
    base_url: str
    api_key: str | None = field(repr=False)
    arm: str
    reason: str

    def openai_client(self) -> "OpenAI":
        """OpenAI's own client at this address. Raises MissingPackage: openai is not installed."""
        require("openai")
        from openai import OpenAI

        # Without a key of its own the client would send OPENAI_API_KEY, which is meant for another host.
        return OpenAI(base_url=self.base_url, api_key=self.api_key or "none")


def get_rl_model_config(settings: Settings | None = None) -> RLModelConfig:
    """The configuration in force; also the gateway's start-up line."""
    chosen = settings or load_settings()
    return RLModelConfig(
        enabled=chosen.rl_enabled, available=is_rl_model_available(chosen), pinned_version=chosen.rl_model_version,
        wandb_model=chosen.wandb_model, base_model=base_route(chosen, "").model_name, fallback_to_base=chosen.rl_fallback_to_base,
        rollout_percentage=chosen.rl_rollout_percentage,
    )  # fmt: skip


def is_rl_model_available(settings: Settings | None = None) -> bool:
    """True when some agent could get another model than the base, were USE_RL_MODEL on."""
    chosen = settings or load_settings()
    table = _table(chosen)
    return bool(chosen.wandb_model or chosen.rl_model_version or table.deployed or table.trial or table.test)


def should_use_rl_model(agent_id: str | None = None, settings: Settings | None = None) -> bool:
    """True when this agent gets another model than the base."""
    return _route(settings or load_settings(), agent_id, None).arm != "base"


def get_model_for_inference(agent_id: str | None = None, *, model: str | None = None, settings: Settings | None = None) -> InferenceModel:
    """The model that this agent calls.

    ``model`` is a name as in a request to the gateway.

    Raises:
        ModelUnavailable: ``model`` or RL_MODEL_VERSION names a version that is not there, or one whose pointer leads away from its service.
        CheckpointError: another checkpoint has the place of the version's pointer to its service.
    """
    chosen = settings or load_settings()
    found = _route(chosen, agent_id, model)
    url, key, service = with_version(chosen.local_endpoint), None, SERVICES.get(found.upstream)
    if service is not None:
        directory = None
        if found.version is not None and found.checkpoint is not None:
            directory = registered_checkpoint(found.version, Path(found.checkpoint), found.manifest_sha, chosen)
        remote = None if directory is None else read_remote(directory)
        url, key = service.base_url if remote is None else remote.inference_url, service.key(chosen) or None
        if (refusal := service.refusal(url, chosen)) is not None:
            raise ModelUnavailable(f"{found.version} cannot be asked: {refusal}")
    return InferenceModel(found.version, found.model_name, url, key, found.arm, found.reason)


def get_latest_rl_model(settings: Settings | None = None) -> RoutedVersion | None:
    """The newest deployed version, None while none is deployed."""
    table = _table(settings or load_settings())
    return None if table.deployed is None else table.versions[table.deployed]


def client(version: str | None = None, *, agent_id: str | None = None, settings: Settings | None = None) -> ChatClient:
    """A client, to be closed, of a version or of the model that this agent gets. Raises ModelUnavailable: there is no such version."""
    asked = get_model_for_inference(agent_id, model=version, settings=settings)
    return ChatClient(asked.base_url, asked.api_key, asked.model)


def _route(settings: Settings, agent_id: str | None, model: str | None) -> Route:
    try:
        return route(_table(settings), settings, model, agent_id)
    except DatabaseError as away:
        # As the gateway does before the registry has answered.
        if not settings.rl_fallback_to_base:
            raise ModelUnavailable(f"The registry does not answer: {away}") from away
        return base_route(settings, "the registry does not answer")


def _table(settings: Settings) -> RoutingTable:
    database = process_database(settings)
    with _reading:
        # Read under the lock, so that one of many threads asks the database and the others take its answer.
        read_at, table = _tables.get(database.url, (float("-inf"), RoutingTable()))
        if time.monotonic() - read_at > MAX_AGE_S:
            with database.connect(autocommit=True) as connection:
                table = read_routing(connection)
            _tables[database.url] = (time.monotonic(), table)
        return table


_reading = Lock()
_tables: dict[str, tuple[float, RoutingTable]] = {}
