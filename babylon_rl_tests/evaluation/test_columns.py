"""Tables of results have a name for every cell, each once."""

import pytest

from babylon_rl.evaluation import columns


@pytest.mark.parametrize(
    "made",
    [
        columns.gate_columns("base"), columns.gate_columns(None), columns.leaderboard_columns("base"), columns.contest_columns("base"),
        columns.demo_columns("base"), columns.AGENTS, columns.PAIRS, columns.NEEDED, columns.RUNS, columns.ACTIONS, columns.CRITERIA,
        columns.GENERATIONS,
    ],
)  # fmt: skip
def test_every_column_has_its_own_title(made):
    titles = [column.title for column in made]
    assert len(set(titles)) == len(titles) > 2


def test_without_a_reference_there_is_no_column_of_differences():
    with_one, without = ([column.title for column in columns.gate_columns(name)] for name in ("base", None))
    assert [title for title in with_one if title not in without] == ["against the reference"]
