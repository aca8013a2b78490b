"""What Dagster loads: the code location (automation/code_location.py) with the settings and the database of the environment."""

from babylon_rl.assets.resources import babylon
from babylon_rl.automation.code_location import code_location

defs = code_location(babylon)
