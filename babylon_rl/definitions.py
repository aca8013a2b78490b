"""Entry point for Dagster: the code location with settings and database of the environment."""

from babylon_rl.heap import kept_whole, return_freed_memory

with kept_whole():
    from babylon_rl.assets.resources import babylon
    from babylon_rl.automation.code_location import code_location

    defs = code_location(babylon)
# Every process of Dagster imports this; a trainer takes it back (models/threads.py).
return_freed_memory()
