"""The command line of `make scale-test`, its table and its bounds; babylon_rl_tests/scale has its scenarios."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl_tests.scale.results import Row, bound_s, commands, ratios, settings_named, table
from babylon_rl_tests.store.servers import ROOT
from benchmarks import scale_test


def speeds(*seconds: float, hours: int = 720) -> list[Row]:
    names = ("one process", "1 worker", "2 workers", "4 workers")
    return [Row(name, hours, some) for name, some in zip(names, seconds, strict=False)]


def test_a_mistyped_scenario_is_refused_before_any_server_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["scale_test", "speed", "worker-kiled"])
    with pytest.raises(SystemExit) as ended:
        scale_test.main()
    assert ended.value.code == 2
    assert "worker-kiled is not a scenario. Choose from speed, worker-killed, process-killed" in capsys.readouterr().err


@pytest.mark.long
def test_without_redis_it_is_skipped_with_a_sentence(tmp_path: Path):
    environment = os.environ | {"PATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", "benchmarks.scale_test"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "scale-test: skipped: redis-server is not installed here (Debian: apt install redis-server)\n"


def test_ratios_that_miss_their_bound_end_it_in_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def exit_code(hours: int, rows: list[Row]) -> int:
        monkeypatch.setattr(sys, "argv", ["scale_test", "--hours", str(hours), "speed"])
        monkeypatch.setattr(scale_test, "measured", lambda *_: iter(rows))
        monkeypatch.setattr("shutil.which", lambda program: program)
        try:
            scale_test.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    good, bad = speeds(474, 494, 243, 135), speeds(474, 494, 243, 160)
    assert exit_code(720, good) == 0
    said = capsys.readouterr().out
    assert "one worker's time over one process's: 1.04 (at most 1.4)" in said
    assert "2 workers, times as fast as one: 2.03 (at least 1.8)" in said
    assert "4 workers, times as fast as one: 3.66 (at least 3.2)" in said
    assert exit_code(720, bad) == 1
    assert "4 workers, times as fast as one: 3.09 (at least 3.2: MISSED)" in capsys.readouterr().out
    assert exit_code(48, speeds(30, 34, 19, 19, hours=48)) == 0
    said = capsys.readouterr().out
    assert "2 workers, times as fast as one: 1.79 (at least 1.3)" in said
    assert "4 workers, times as fast as one: 1.79 (no bound over so few hours)" in said
    assert exit_code(48, speeds(30, 55, 19, 19, hours=48)) == exit_code(48, speeds(30, 34, 27, 27, hours=48)) == 1
    assert exit_code(72, speeds(30, 49, 49, 49, hours=72)) == 0
    assert exit_code(720, [Row("alone", 3, 91.0)]) == 0


def test_each_ratio_is_held_to_its_own_bound():
    assert [ratio.kept for ratio in ratios(speeds(100, 141, 78, 44))] == [False, True, True]
    assert [ratio.kept for ratio in ratios(speeds(100, 140, 78, 44))] == [True, False, False]
    assert ratios(speeds(100)) == []


def test_the_table_shows_what_a_fault_cost():
    row = Row("worker killed", 48, 117.4, 1, 24, 95.2, 180.0, "one of two machines lost")
    assert table([row]).splitlines()[2] == "| worker killed | 48 | 117 | 1 | 24 | 95 of 180 | one of two machines lost |"


def test_bounds_and_commands_are_those_of_the_how_to():
    stops = ("Redis, emptied or not", "a worker with its machine", "a worker is cut off from Redis", "a worker is cut off from Postgres")
    assert all(30 <= bound_s(what) <= 300 for what in (*stops, "the process of a run", "S3 is away"))
    assert ["babylon-rl", "worker", "--queue", "hours"] in commands()
    assert {"DATABASE_URL", "CELERY_BROKER_URL"} <= set(settings_named())
