"""Routing: which model answers a request, decided from the registry's table and the settings alone.

The first match wins: a version named in the request, RL_MODEL_VERSION, WANDB_MODEL, the arm of a running A/B test, the rollout on trial
and the deployed version within RL_ROLLOUT_PERCENTAGE, the base. USE_RL_MODEL=false comes before all of them. An agent's place on the
scale of 0 to 100 % is a hash of its id, so that it keeps its model, and raising a share only adds agents.
"""

import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from babylon_rl.errors import ModelUnavailable
from babylon_rl.services import LOCAL, WANDB, service_in_use, unknown_service
from babylon_rl.settings import Settings
from babylon_rl.store.registry import MODEL_PREFIX
from babylon_rl.store.releases import BASE, ABTest, RoutingTable

Arm = Literal["named", "pinned", "wandb_model", "ab", "test", "rollout", "deployed", "base"]
NEWEST, BY_REGISTRY = "newest", "registry"
# The meaning of model names that are no version: the newest deployed version, or the choice of the registry for this agent. The latter
# are the names in the game's agent settings: its slots, and the models that its agents called before.
ALIASES: dict[str, str] = {
    "babylon-agent": NEWEST, "latest": NEWEST,
    "lite": BY_REGISTRY, "standard": BY_REGISTRY, "pro": BY_REGISTRY, "auto": BY_REGISTRY,
    "qwen/qwen3-32b": BY_REGISTRY, "moonshotai/kimi-k2-instruct-0905": BY_REGISTRY, "llama-3.1-8b-instant": BY_REGISTRY,
    "llama-3.3-70b-versatile": BY_REGISTRY, "gpt-4o-mini": BY_REGISTRY, "your-org/babylon-agents/babylon-mmo:latest": BY_REGISTRY,
}  # fmt: skip
# OpenAI's names, which its clients and runtimes send by default.
_OPENAI_NAMES = re.compile(r"(?:openai/)?(?:gpt-|chatgpt-|o\d(?![^-]))[\w.:-]*")
_BITS = 53  # of a hash: exactly those of a float, so that no place is 100


@dataclass(frozen=True, slots=True)
class Route:
    """The model of one request: ``model_name`` at ``upstream``; ``version`` is None for the base and for WANDB_MODEL.

    ``arm`` is the rule that matched and ``reason`` its sentence; ``share`` is the percentage of agents that get the same by this rule,
    None for rules without one.
    """

    version: str | None
    model_name: str
    upstream: str
    arm: Arm
    reason: str
    share: float | None = None
    checkpoint: str | None = None
    manifest_sha: str | None = None


def place(identity: str, salt: str = "") -> float:
    """The place of an agent from 0 to below 100, independent by ``salt``."""
    digest = blake2b(identity.encode(), digest_size=8, salt=blake2b(salt.encode(), digest_size=16).digest() if salt else b"").digest()
    return 100 * ((int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS))


def route(
    table: RoutingTable, settings: Settings, requested: str | None = None, agent_id: str | None = None, key_hash: str | None = None
) -> Route:
    """Choose the model of a request.

    Args:
        requested: the request's model name; None is the choice of the registry.
        agent_id: decides the agent's place, else ``key_hash`` does.

    Raises:
        ModelUnavailable: ``requested`` or RL_MODEL_VERSION names a version that is not there, or no model at all.
    """
    # Before the switch is looked at: an unknown name is an error also while the RL models are off.
    named = _named(table, settings, requested)
    if not settings.rl_enabled:
        off = "USE_RL_MODEL=false" if settings.use_rl_model is False else "in production USE_RL_MODEL is off unless it is set"
        return base_route(settings, f"the RL models are switched off: {off}")
    if isinstance(named, Route):
        return named
    if settings.rl_model_version is not None:
        if settings.rl_model_version == BASE:
            return base_route(settings, "RL_MODEL_VERSION=base")
        version = settings.rl_model_version.removeprefix(MODEL_PREFIX)
        return _to(table, version, "pinned", f"RL_MODEL_VERSION={settings.rl_model_version}")
    if settings.wandb_model is not None:
        return Route(None, settings.wandb_model, WANDB.name, "wandb_model", f"WANDB_MODEL={settings.wandb_model}")
    identity = agent_id or key_hash or ""
    return _by_test(table, settings, identity) or _by_release(table, settings, identity, agent_id)


def alias_meaning(name: str) -> str | None:
    """Meaning of a model name that is no version; None without one."""
    return ALIASES.get(name) or (BY_REGISTRY if _OPENAI_NAMES.fullmatch(name) else None)


def base_route(settings: Settings, reason: str, upstream: str | None = None) -> Route:
    """The base model; as a fallback at the ``upstream`` of the version that failed, whose base is there."""
    service = service_in_use(settings)
    where = upstream or (LOCAL if service is None else service.name)
    return Route(None, BASE if where == LOCAL else settings.base_model, where, "base", reason)


def _named(table: RoutingTable, settings: Settings, requested: str | None) -> Route | str:
    """The route of a name that decides by itself, else the meaning of the name."""
    if not requested:
        return BY_REGISTRY
    if requested in (BASE, settings.base_model):
        return base_route(settings, f"the request names {requested}")
    meaning = None if requested in table.versions else alias_meaning(requested)
    if meaning == NEWEST:
        if table.deployed is None:
            return base_route(settings, f"{requested} is the newest deployed version, and none is deployed")
        return _to(table, table.deployed, "named", f"{requested} is the newest deployed version, {table.deployed}")
    if meaning is not None:
        return meaning
    version = requested.removeprefix(MODEL_PREFIX)
    if version in table.versions:
        return _to(table, version, "named", f"the request names {requested}")
    raise ModelUnavailable(f"There is no model {requested}; `GET /v1/models` and `babylon-rl models` list those that there are.")


def _by_test(table: RoutingTable, settings: Settings, identity: str) -> Route | None:
    if (test := table.test) is None or (arm := arm_of(test, identity)) is None:
        return None
    name, share = test.arms[arm], test.shares[arm]
    reason = f"arm {name} of the A/B test {test.name}"
    if name == BASE:
        return replace(base_route(settings, reason), arm="ab", share=share)
    return _to(table, name, "ab", reason, share)


def arm_of(test: ABTest, identity: str) -> int | None:
    """Number of an agent's arm in an A/B test, None beyond the shares; by a scale of its own, independent of other tests."""
    left = place(identity, f"ab/{test.name}")
    for number, share in enumerate(test.shares):
        if left < share:
            return number
        left -= share
    return None


def _by_release(table: RoutingTable, settings: Settings, identity: str, agent_id: str | None) -> Route:
    trial, here, bound = table.trial, place(identity), settings.rl_rollout_percentage
    if trial is not None and agent_id is not None and agent_id in trial.agent_ids:
        return _to(table, trial.version, "test", f"{agent_id} is a test agent of {trial.version}")
    share = 0.0 if trial is None else min(trial.percentage, bound)
    if trial is not None and here < share:
        return _to(table, trial.version, "rollout", f"{trial.version} is rolled out to {share:g} % of agents", share)
    if table.deployed is None:
        return base_route(settings, "no version is deployed")
    # Places below ``share`` went to the trial above, so the deployed version has the rest up to the bound.
    if here < bound:
        return _to(table, table.deployed, "deployed", f"{table.deployed} is deployed", bound - share)
    return base_route(settings, f"RL_ROLLOUT_PERCENTAGE={bound:g} leaves this agent the base")


def _to(table: RoutingTable, version: str, arm: Arm, reason: str, share: float | None = None) -> Route:
    """The route to a version. Raises ModelUnavailable: it cannot be asked."""
    there = table.versions.get(version)
    if there is None:
        raise ModelUnavailable(f"There is no version {version}; `babylon-rl models` lists those that there are.")
    if not there.can_be_asked:
        raise ModelUnavailable(f"{version} cannot be asked: it {'was pruned' if there.pruned else f'is {there.status}'}.")
    if (unknown := unknown_service(version, there.upstream)) is not None:
        raise ModelUnavailable(unknown)
    return Route(version, there.model_name, there.upstream, arm, reason, share, there.checkpoint, there.manifest_sha)
