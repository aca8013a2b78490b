"""Small tests of this room share one database and roll back, and the scripted judge's share one server."""

from collections.abc import Iterator

import pytest

from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]


@pytest.fixture(scope="module")
def served() -> Iterator[Judge]:
    with judging() as judge:
        yield judge


@pytest.fixture
def judge(served: Judge) -> Judge:
    served.reset()
    return served
