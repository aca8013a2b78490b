"""Where a snapshot of ours comes from: its config as the snapshot holds it, and the scenario that the config gives."""

import re
from typing import Any, TypeVar

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import Scenario

T = TypeVar("T")


def benchmark_scenario(config: ScenarioConfig) -> Scenario:
    """The market that a benchmark of this config is about; those who post in it are its agents."""
    return generate(_one_spelling(config), MarketModel(authors=config.agents))


def camel_fields(value: Any) -> Any:
    """A config or model as JSON holds it: camelCase names in the order of their declaration, lists for tuples."""
    if isinstance(value, msgspec.Struct):
        return {_camel(name): camel_fields(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, list | tuple):
        return [camel_fields(item) for item in value]
    return value


def config_of(fields: dict[str, Any]) -> ScenarioConfig:
    """The config that `camel_fields` wrote.

    Raises:
        MarketError: it is none, or a value is out of range.
    """
    return _read(fields, ScenarioConfig, "config")


def model_of(fields: dict[str, Any]) -> MarketModel:
    """The model that `camel_fields` wrote.

    Raises:
        MarketError: it is none.
    """
    return _read(fields, MarketModel, "market model")


def _read(fields: dict[str, Any], kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(_snake_fields(fields), kind)
    except msgspec.ValidationError as error:
        raise MarketError(f"The snapshot's {what} cannot be read: {error}.") from error


def _snake_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {_snake(name): _snake_fields(field) for name, field in value.items()}
    return [_snake_fields(item) for item in value] if isinstance(value, list) else value


def _one_spelling(config: ScenarioConfig) -> ScenarioConfig:
    """``7`` and ``"7"`` are one seed and give one file."""
    seed = config.seed
    if isinstance(seed, str) and re.fullmatch(r"0|-?[1-9]\d*", seed):
        return msgspec.structs.replace(config, seed=int(seed))
    return config


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()
