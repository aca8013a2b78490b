"""A sample of the simulation's schedules (simulation.py); ``make faults`` runs a thousand."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babylon_rl.store.database import Database
from babylon_rl_tests.faults import run_schedules
from babylon_rl_tests.faults.run_schedules import copied, judge_site, own_server, quiet, run_schedule, trainer_of
from babylon_rl_tests.faults.simulation import Broken, Schedule, Site
from babylon_rl_tests.judge.scripted_server import judging

pytestmark = pytest.mark.long
SEEDS = [seed for seed in range(11) if trainer_of(seed) == "dry"]


@pytest.fixture
def site() -> Iterator[Site]:
    """Schedules with the dry trainer: the others import torch, which takes longer than all of these."""
    with judging() as judge, quiet():
        yield judge_site(judge)


def test_schedules_lose_and_repeat_nothing(site: Site, copy_of: Callable[[str], Database]) -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts += run_schedule(seed, site, copy_of("migrated").url).counts
    assert counts["dies"] > 5 and counts["two at once"] > 5 and counts["SIGKILL"] > 0 and counts["clock jumps"] > 5


def test_a_seed_repeats_its_schedule(site: Site, copy_of: Callable[[str], Database]) -> None:
    first, again = (run_schedule(3, site, copy_of("migrated").url) for _ in range(2))
    assert first.story == again.story


def test_versions_of_the_cpu_trainer_play_the_gates_markets() -> None:
    with own_server() as server, run_schedules.site(server, {"cpu"}) as at, quiet(), copied(server, "schedule") as url:
        counts = run_schedule(49, at, url).counts
    assert counts["pass by play"] and counts["fail by play"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("DELETE FROM trajectories WHERE \"trajectoryId\" = (SELECT min(\"trajectoryId\") FROM trajectories)", "changed or lost"),
        ('UPDATE trajectories SET "totalReward" = 7', "changed or lost"),
        ('UPDATE trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = \'b\'', "AssertionError"),
        ("UPDATE trained_models SET status = 'deployed', \"trainingBatch\" = NULL", "AssertionError"),
        ('DELETE FROM babylon_rl.judge_requests', "answers lost"),
    ],
)  # fmt: skip
def test_each_invariant_is_seen_to_break(site: Site, copy_of: Callable[[str], Database], tmp_path: Path, harm: str, says: str) -> None:
    schedule = Schedule(1, site, copy_of("migrated").url, tmp_path, "dry")
    schedule.act("recorder", "hours", "judge")
    schedule.connection.execute(harm)
    schedule.connection.commit()
    with pytest.raises(Broken, match=says):
        schedule.run()
