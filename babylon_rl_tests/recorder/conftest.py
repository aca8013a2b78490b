"""Small tests of this room share one database and roll back."""

from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]
