"""Entry point for Dagster: the code location with settings and database of the environment."""

from babylon_rl.assets.resources import babylon
from babylon_rl.automation.code_location import code_location
from babylon_rl.heap import return_freed_memory

# Every process of Dagster imports this; a trainer takes it back (models/threads.py).
return_freed_memory()
defs = code_location(babylon)
