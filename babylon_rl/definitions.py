"""Entry point for Dagster: the code location with settings and database of the environment."""

from babylon_rl.assets.resources import babylon
from babylon_rl.automation.code_location import code_location

defs = code_location(babylon)
