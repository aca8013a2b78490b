"""Versions registered on a tiny base, as the benchmark's tests make them."""

from babylon_rl_tests.evaluation.conftest import base_dir, connection, make_version, settings

__all__ = ["base_dir", "connection", "make_version", "settings"]
