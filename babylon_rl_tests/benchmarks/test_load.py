"""The load test's figures of a death: what was refused, for how long, and when all was normal again."""

import itertools
from collections import Counter
from typing import Any

import pytest

from benchmarks.load import AFTER_S, Load, Second, broken, level, moments, row

STEADY = {"gateway": {"mb": [86, 87], "files": [40, 40]}, "its writer": {"mb": [65, 63], "files": [9, 9]}}


def test_a_death_is_told_by_its_refusals_its_longest_loss_and_the_seconds_until_normal() -> None:
    load = Load()
    load.seconds = {at: Second(Counter({200: 10}), 0.01) for at in range(60)}
    for at in range(10, 20):
        load.seconds[at] = Second(Counter({200: 4, 502: 6}), 0.2, waiting_trajectories=700)
    load.seconds[22] = Second(Counter({200: 10}), 3.0)  # late
    load.seconds[30] = Second(Counter({200: 10}), 0.01, waiting_bytes=9_000_000)
    load.seconds[41] = Second(Counter({0: 1}))  # of the next death
    assert row(load, "database", 10, 20, 40) == {
        "dependency": "database", "away_s": 10, "refused_by_status": {502: 60}, "longest_loss_of_service_s": 10, "s_until_normal": 3,
        "s_not_normal": 2, "most_waiting_trajectories": 700, "most_waiting_mb": 9.0, "storage_refused_s": 0,
    }  # fmt: skip
    quiet = row(load, "model server", 45, 50, 60)
    assert (quiet["refused_by_status"], quiet["longest_loss_of_service_s"], quiet["s_until_normal"]) == ({}, 0, 0)
    assert row(load, "database", 10, 20, 26)["s_until_normal"] is None, "three normal seconds at the end are too few"


def test_memory_and_files_are_compared_early_and_late() -> None:
    assert level([(1_000_000 * (100 + at), 20) for at in range(100)]) == {"mb": [114.5, 194.5], "most_mb": 199.0, "files": [20, 20]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"gateway": {"mb": [86, 104], "files": [40, 40]}}, ["gateway: memory went from 86 to 104 MB."]),
        ({"its writer": {"mb": [20, 29], "files": [9, 200]}}, ["its writer: open files went from 9 to 200."]),
        ({"agents with the recorder": {"mb": [150, 900], "files": [9, 9]}}, []),
    ],
)
def test_the_gateway_and_its_writer_may_not_hold_more_and_more(changed: dict[str, Any], said: list[str]) -> None:
    assert broken(0, 0, [], STEADY | changed) == said


def test_a_death_after_which_normal_seconds_were_not_seen_in_time_breaks_the_promise_as_lost_rows_do() -> None:
    load = Load(seconds={at: Second(Counter({200: 10}), 0.01) for at in range(200)})
    rows = [row(load, "database", 10, 20, 100)]
    assert broken(0, 0, rows, STEADY) == []
    for at in range(20, 100):
        load.seconds[at] = Second(Counter({503: 1}))
    rows.append(row(load, "model server", 10, 20, 100))  # never
    load.seconds |= {at: Second(Counter({200: 10}), 0.01) for at in range(85, 100)}
    rows.append(row(load, "object storage", 10, 20, 100))  # after 65 seconds
    assert broken(2, 1, rows, STEADY) == [
        "2 recorded rows are lost.", "1 recorded rows are there twice.", "model server: all was not normal within 60 s of its return.",
        "object storage: all was not normal within 60 s of its return.",
    ]  # fmt: skip


def test_deaths_are_at_even_distances_and_leave_time_for_the_last_return() -> None:
    ten = moments(600, 6)
    assert len(ten) == 6 and ten[-1] == 600 - AFTER_S and {round(after - at) for at, after in itertools.pairwise(ten)} == {98}
    assert [len(moments(seconds, 3)) for seconds in (110, 150, 190)] == [1, 2, 3]
    with pytest.raises(ValueError, match="take 1.8 minutes"):
        moments(100, 3)
