"""Parts of an hour: boundaries from the times of acts, P&L of a part, advantages on a fixed scale."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.episodes.reading import by_agent, episode, read_windows
from babylon_rl.judge.consensus import group_scores, part_scores, without_agents
from babylon_rl.judge.parts import LEAST_AGENTS, Part, hour_parts, part_results
from babylon_rl.judge.scoring import heuristic_part_score, judge_by_part
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.types import Episode, HourEpisodes, MinutePnl, Trajectory
from babylon_rl_tests.expected import SAMPLES, expected
from babylon_rl_tests.rows import START, WINDOW, insert, make_call, make_step, make_trajectory

MINUTE_MS = 60_000
FIVE = tuple(Part(start, start + 5) for start in range(0, 60, 5))


def acted(agent: str, minutes: Sequence[int], change: float = 1.0) -> Episode:
    """An episode with a trajectory in each of some minutes, which brings ``change`` dollars."""
    own = [
        Trajectory(
            trajectory_id=f"{agent}-{place:02}", agent_id=agent, window=WINDOW, start_time=START, used=False, steps=1,
            start_pnl=place * change, end_pnl=(place + 1) * change, actions={}, trades=0, posts=0, message_source="embedded",
            trainable_sequences=1, content="", minutes=(MinutePnl(minute, place * change, (place + 1) * change),),
        )
        for place, minute in enumerate(minutes)
    ]  # fmt: skip
    return episode(by_agent(own)[0], 1)


@pytest.mark.parametrize(
    ("minutes", "starts"),
    [
        ([range(0, 60, 5), range(0, 60, 5)], range(0, 60, 5)),
        ([range(60), range(60)], range(0, 60, 5)),
        ([range(0, 60, 2), range(1, 60, 2)], range(0, 60, 6)),
        ([range(0, 60, 7), range(3, 60, 7)], range(0, 56, 7)),
        ([range(0, 60, 5), range(30, 60, 5)], [0, 35, 40, 45, 50, 55]),
        ([range(0, 60, 5), [2]], [0]),
        ([[4], [17]], [0]),
        ([range(0, 60, 5), []], [0]),
    ],
    ids=["five minutes", "one minute", "two minutes", "seven minutes", "alone at first", "alone later", "once each", "times not known"],
)
def test_an_hour_is_divided_by_its_tick_until_two_agents_act(minutes: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
    episodes = [acted(f"a{number}", own) if own else acted("none", [0], 0.0) for number, own in enumerate(minutes)]
    if not all(minutes):
        episodes = [one if own else Episode(**{**_fields(one), "minutes": ()}) for one, own in zip(episodes, minutes, strict=True)]
    found = hour_parts(episodes)
    assert [part.start for part in found] == list(starts) and found[-1].end == 60


def _fields(one: Episode) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


@given(st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=12, unique=True), min_size=1, max_size=5), st.integers(1, 60))
def test_parts_are_five_minutes_at_least_cover_the_hour_and_sum_up_to_the_window(minutes: list[list[int]], most: int) -> None:
    episodes = [acted(f"a{number}", sorted(own), number - 2.0) for number, own in enumerate(minutes)]
    found = hour_parts(episodes, most)
    assert found == hour_parts(episodes[::-1], most) and len(found) <= max(1, most)
    assert found[0].start == 0 and found[-1].end == 60 and all(before.end == after.start for before, after in pairwise(found))
    assert all(part.end - part.start >= 5 for part in found)
    results = [part_results(one, found) for one in episodes]
    assert len(found) == 1 or all(sum(part in own for own in results) >= LEAST_AGENTS for part in found)
    for one, own in zip(episodes, results, strict=True):
        assert sum(result.pnl for result in own.values()) == pytest.approx(one.window_pnl)
        assert sum(result.wins for result in own.values()) == one.wins


def test_a_part_counts_an_open_position_by_its_value_at_the_next_step() -> None:
    rows = [MinutePnl(1, 0.0, 0.0), MinutePnl(6, 40.0, 40.0), MinutePnl(21, -10.0, -10.0)]
    one = Episode(**{**_fields(acted("a", [1, 6, 21], 0.0)), "minutes": tuple(rows), "end_pnl": -10.0})  # type: ignore[arg-type]
    assert [(part.start, result.pnl) for part, result in part_results(one, FIVE).items()] == [(0, 40.0), (5, -50.0), (20, 0.0)]


def test_a_long_trajectory_is_divided_by_the_times_of_its_steps(connection: Connection, settings: Settings) -> None:
    first = make_step()["timestamp"]
    steps = [
        make_step(number, pnl=10.0 * number, timestamp=first + number * 5 * MINUTE_MS, calls=[make_call()]) for number in range(12)
    ]  # fmt: skip
    insert(connection, "trajectories", [make_trajectory(agent, agent, steps=steps, minute=0, finalPnL=100.0) for agent in ("a", "b")])
    (one, _) = read_windows(connection, [WINDOW], settings, texts=True)[WINDOW].episodes
    assert hour_parts([one, one]) == FIVE and [call.minute for call in one.sequences] == list(range(0, 60, 5))
    assert [result.pnl for result in part_results(one, FIVE).values()] == [10.0] * 11 + [-10.0]


@pytest.mark.parametrize("fixture", SAMPLES)
def test_recorded_hours_are_divided_and_their_parts_sum_up(request: pytest.FixtureRequest, settings: Settings, fixture: str) -> None:
    database: Database = request.getfixturevalue(fixture)
    with database.connect() as connection:
        readings = read_windows(connection, expected(fixture)["ready_windows"]["5"], settings)
    for reading in readings.values():
        found = hour_parts(reading.usable_episodes)
        assert 1 < len(found) <= 12
        for one in reading.usable_episodes:
            assert sum(result.pnl for result in part_results(one, found).values()) == pytest.approx(one.window_pnl, abs=1e-6)


def test_the_heuristic_scores_each_part_and_the_hour_by_the_mean() -> None:
    episodes = (acted("lost", range(0, 60, 5), -20.0), acted("won", range(0, 60, 5), 20.0))
    found = judge_by_part(HourEpisodes(window=WINDOW, episodes=episodes, min_agents=2), "v")
    good, bad = heuristic_part_score(20.0, 1, 0), heuristic_part_score(-20.0, 0, 1)
    assert {score.agent_id: score.score for score in found.scores} == pytest.approx({"won": good, "lost": bad})
    assert [part.advantage for part in found.parts[:2]] == pytest.approx([(bad - good) / 2 / 0.12, (good - bad) / 2 / 0.12])
    assert found.judge_version == "1, by part" and "mean of 12 parts" in found.scores[0].reasoning


def test_a_part_without_spread_has_no_advantage_and_an_hour_trains_if_any_part_differs() -> None:
    flat = {(part, agent): 0.5 for part in FIVE[:2] for agent in "ab"}
    differs = {(FIVE[0], "a"): 0.6, (FIVE[1], "a"): 0.4, (FIVE[0], "b"): 0.4, (FIVE[1], "b"): 0.6}
    scores = {"a": (0.5, ""), "b": (0.5, "")}
    assert [part.advantage for part in part_scores(flat)] == [0.0] * 4
    assert not group_scores(WINDOW, "j", "1", scores, "v", flat).has_spread
    assert group_scores(WINDOW, "j", "1", scores, "v", differs).has_spread and not group_scores(WINDOW, "j", "1", scores, "v").has_spread


def test_the_advantages_of_parts_are_those_of_the_agents_that_remain() -> None:
    marks = {(FIVE[0], agent): score for agent, score in (("a", 0.2), ("b", 0.4), ("c", 0.9))}
    whole = group_scores(WINDOW, "j", "1", {agent: (score, "") for (_, agent), score in marks.items()}, "v", marks)
    rest = without_agents(whole, {"c"})
    assert [(part.agent_id, part.advantage) for part in rest.parts] == [("a", pytest.approx(-0.1 / 0.12)), ("b", pytest.approx(0.1 / 0.12))]
