"""A tiny model for the commands that need one."""

from babylon_rl_tests.cli.conftest import tiny_base

__all__ = ["tiny_base"]
