"""Versions registered on a tiny base, as the benchmark's tests make them, and a model server for gateways."""

from collections.abc import Iterator
from typing import Any

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.conftest import base_dir, connection, make_version, settings
from babylon_rl_tests.serving.gateways import add_version
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, model_stand_in

__all__ = ["base_dir", "connection", "make_version", "settings"]


@pytest.fixture
def upstream() -> Iterator[ModelStandIn]:
    """A model server without faults."""
    with model_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def recording(settings: Settings, database: Database, upstream: ModelStandIn) -> Settings:
    """Settings of a gateway in front of the stand-in, with v1.0.0 deployed."""
    add_version(database, "v1.0.0")
    return settings.model_copy(update={"local_endpoint": upstream.url, "gateway_timeout_seconds": 2.0})


@pytest.fixture
def versions(make_version: Any) -> list[str]:
    names = ["v1.0.0", "v1.0.1", "v1.0.2"]
    for name in names:
        make_version(name)
    return names
