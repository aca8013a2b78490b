"""Sub-groups of large groups: they overlap, and their scores merge onto one scale."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.judge.consensus import MIN_SUBGROUP, merge, spearman, split
from babylon_rl_tests.repeatable import repeatable


def agents(number: int) -> list[str]:
    return [f"agent-{place:03}" for place in range(number)]


@repeatable(60)
@given(st.integers(1, 120), st.integers(MIN_SUBGROUP, 24), st.integers(0, 9))
def test_parts_cover_all_are_small_enough_and_share_anchors(number: int, most: int, seed: int) -> None:
    group = agents(number)
    parts = split(group, most, seed)
    assert set().union(*parts) == set(group) and all(len(set(part)) == len(part) <= most for part in parts)
    assert parts == split(group[::-1], most, seed)
    if number <= most:
        assert parts == [group]
    else:
        assert len(set.intersection(*map(set, parts))) == max(most // 3, min(4, most // 2)) >= 2
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_another_seed_draws_other_anchors() -> None:
    drawn = {tuple(sorted(set.intersection(*map(set, split(agents(40), 10, seed))))) for seed in range(20)}
    assert len(drawn) > 15


def ranking(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda agent: (scores[agent], agent))


def judged(group: list[str], most: int, seed: int, maps: list[tuple[float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """The latent skills, and what merges of parts that each judge them through a rising line of its own."""
    order = list(group)
    random.Random(seed).shuffle(order)
    skill = {agent: (place + 0.5) / len(order) for place, agent in enumerate(order)}
    parts = split(group, most, seed)
    lines = [maps[place % len(maps)] for place in range(len(parts))]
    return skill, merge([{agent: low + high * skill[agent] for agent in part} for part, (low, high) in zip(parts, lines, strict=True)])


@repeatable(60)
@given(st.integers(2, 80), st.integers(MIN_SUBGROUP, 20), st.integers(0, 99))
def test_with_a_noiseless_judge_the_merged_scores_are_the_full_ones(number: int, most: int, seed: int) -> None:
    skill, merged = judged(agents(number), most, seed, [(0.0, 1.0)])
    assert merged == {agent: pytest.approx(skill[agent], abs=1e-8) for agent in skill}


lines = st.tuples(st.floats(0, 0.5), st.floats(0.05, 0.5))


@repeatable(60)
@given(st.integers(2, 80), st.integers(6, 20), st.integers(0, 99), st.lists(lines, min_size=1, max_size=8))
def test_the_merged_ranking_is_the_full_one_whatever_scale_each_part_was_judged_on(
    number: int, most: int, seed: int, maps: list[tuple[float, float]]
) -> None:
    skill, merged = judged(agents(number), most, seed, maps)
    assert ranking(merged) == ranking(skill) and list(merged) == sorted(skill)
    assert all(0 <= score <= 1 for score in merged.values())


@repeatable(60)
@given(st.integers(2, 80), st.integers(MIN_SUBGROUP, 5), st.integers(0, 99), st.lists(st.floats(0, 0.5), min_size=1, max_size=8))
def test_two_anchors_tell_how_far_parts_lie_apart(number: int, most: int, seed: int, lows: list[float]) -> None:
    skill, merged = judged(agents(number), most, seed, [(low, 0.5) for low in lows])
    assert ranking(merged) == ranking(skill)


@pytest.mark.parametrize("most", [4, 6, 8, 16])
@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_a_noisy_judges_merged_scores_are_not_worse_than_their_plain_mean(most: int, noise: float) -> None:
    group, differences = agents(20), []
    for seed in range(60):
        draws = random.Random(seed)
        skill = {agent: draws.random() for agent in group}
        parts = [{agent: min(1.0, max(0.0, skill[agent] + draws.gauss(0, noise))) for agent in part} for part in split(group, most, seed)]
        plain = {agent: statistics.fmean(part[agent] for part in parts if agent in part) for agent in group}
        truth = [skill[agent] for agent in group]
        merged = merge(parts)
        found = [spearman(truth, [scores[agent] for agent in group]) for scores in (merged, plain)]
        differences.append((found[0] or 0.0) - (found[1] or 0.0))
    assert statistics.fmean(differences) > -0.01


@repeatable(60)
@given(st.lists(st.dictionaries(st.sampled_from(agents(9)), st.floats(0, 1), min_size=1), min_size=1, max_size=5))
def test_any_parts_that_share_an_agent_merge_and_keep_the_order_inside_what_they_judged(parts: list[dict[str, float]]) -> None:
    shared = [part | {"anchor": 0.5} for part in parts]
    merged = merge(shared)
    assert set(merged) == set().union(*shared) and all(0 <= score <= 1 for score in merged.values())
    for part in shared:
        own = [agent for agent in part if sum(agent in other for other in shared) == 1]
        for better in own:
            for worse in own:
                if part[better] > part[worse]:
                    assert merged[better] >= merged[worse]


def test_anchors_that_tie_leave_the_scale_as_it_is() -> None:
    merged = merge([{"x": 0.5, "y": 0.5, "a": 0.9}, {"x": 0.4, "y": 0.4, "b": 0.9}])
    assert merged == {"a": pytest.approx(0.85), "b": pytest.approx(0.95), "x": pytest.approx(0.45), "y": pytest.approx(0.45)}


def test_a_single_part_stays_as_it_is() -> None:
    assert merge([{"b": 0.1, "a": 1.0}]) == {"a": 1.0, "b": 0.1}
