"""What ``babylon-rl dev`` started ends with it, and what a killed one left is stopped by ``babylon-rl stop``."""

import os
import signal
from pathlib import Path

import pytest

from babylon_rl_tests.e2e.dev import living, running_dev

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STARTED = 3  # dagster dev, its code server, and another process: the webserver's or the code server's own


def test_ctrl_c_and_then_the_rest_of_a_killed_command(tmp_path: Path):
    with running_dev(tmp_path / "home") as dev:
        started = [*dev.group(STARTED), dev.postgres()]
        os.killpg(dev.process.pid, signal.SIGINT)  # as a terminal does
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(60) == 0
        assert living(started, 1) == []
        assert "Stopped." in dev.log.read_text()

    with running_dev(tmp_path / "home") as dev:
        started = [*dev.group(STARTED), dev.postgres()]
        dev.process.kill()
        dev.process.wait()
        said = dev.babylon_rl("stop")
        assert "dagster dev" in said and "embedded database" in said
        assert living(started, 1) == []
        assert dev.babylon_rl("stop").startswith("Nothing that was started")
