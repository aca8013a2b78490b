"""Dagster's storage in the Babylon database, with a clear message if its address is missing."""

import os
from collections.abc import Mapping
from typing import Any, Self

# Not in the public API; the pinned release hands it to every configurable class.
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

STORAGE_URL = "BABYLON_RL_DAGSTER_URL"
WITHOUT_VARIABLES = (
    f"{STORAGE_URL} is not set: Dagster was started without this project's variables. Use `babylon-rl dagster ...` instead, "
    'or run this line in the shell first: eval "$(babylon-rl env)"'
)


class BabylonStorage(DagsterPostgresStorage):
    """Postgres storage whose address comes from the environment only."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """An empty configuration: dagster.yaml sets nothing."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The storage at BABYLON_RL_DAGSTER_URL.

        Raises:
            SystemExit: with a sentence, if the variable is not set.
        """
        url = os.environ.get(STORAGE_URL)
        if not url:
            raise SystemExit(WITHOUT_VARIABLES)  # nothing of ours stands above Dagster's own command to catch an error
        return cls(url, inst_data=inst_data)
