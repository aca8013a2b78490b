"""The load test's figures of a death: what was refused, for how long, and when all was normal again."""

from collections import Counter

from benchmarks.load import Load, Second, level, row


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
    assert row(load, "database", 10, 20, 26)["s_until_normal"] == 6, "three normal seconds at the end are too few"


def test_memory_and_files_are_compared_early_and_late() -> None:
    assert level([(1_000_000 * (100 + at), 20) for at in range(100)]) == {"mb": [114.5, 194.5], "most_mb": 199.0, "files": [20, 20]}
