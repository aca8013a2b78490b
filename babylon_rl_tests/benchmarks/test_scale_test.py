"""The command line of `make scale-test`; babylon_rl_tests/scale has its scenarios."""

import sys

import pytest

from benchmarks import scale_test


def test_a_mistyped_scenario_is_refused_before_any_server_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["scale_test", "speed", "worker-kiled"])
    with pytest.raises(SystemExit) as ended:
        scale_test.main()
    assert ended.value.code == 2
    assert "worker-kiled is not a scenario. Choose from speed, executor, worker-killed, broker-emptied" in capsys.readouterr().err
