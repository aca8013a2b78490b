"""The rules that bar an episode from a training: each has its own condition, the first that holds counts, and no row goes uncounted."""

from itertools import combinations
from typing import Any, get_args

import pytest
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import reason_case
from babylon_rl.training.freezing import RULES, UNREAD, BarReason, count_freezable
from babylon_rl_tests.training.sample import NOW, value

EPISODE = {
    "used": False, "held": False, "left": None, "usable": True, "trainableSequences": 3, "syntheticRows": 0, "leakedCalls": 0,
    "unjudged": False, "usableInHour": 5, "quarantined": False, "flat": False, "gone": False, "settled": True,
}  # fmt: skip
# What makes each rule hold.
CHANGES: dict[BarReason, dict[str, Any]] = {
    "late_after_training": {"used": True},
    "in a live batch": {"held": True},
    "left out by dropout": {"left": "dropout"},
    "used as baseline alone": {"left": "baseline"},
    "in short episodes": {"usable": False},
    "synthetic": {"trainableSequences": 0, "syntheticRows": 3},
    "leak": {"trainableSequences": 3, "leakedCalls": 3},
    "without a call that trains": {"trainableSequences": 0},
    "late_after_judging": {"unjudged": True},
    "in thin hours": {"usableInHour": 4},
    "in quarantined hours": {"quarantined": True},
    "in groups without spread": {"flat": True},
    "changed since the hour was read": {"gone": True},
    "in hours not settled": {"settled": False},
}
COLUMNS = """"used" bool, "held" bool, "left" text, "usable" bool, "trainableSequences" int, "syntheticRows" int, "leakedCalls" int,
    "unjudged" bool, "usableInHour" int, "quarantined" bool, "flat" bool, "gone" bool, "settled" bool"""


def reason(connection: Connection, **changes: Any) -> str | None:
    query = f"SELECT {reason_case(RULES)} FROM jsonb_to_record(%(row)s) AS episode ({COLUMNS})"
    row = connection.execute(query, {"row": Jsonb(EPISODE | changes), "min_agents": 5}).fetchone()
    assert row is not None
    return row[0]


def test_an_episode_that_no_rule_bars_may_train(connection):
    assert reason(connection) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.reason)
def test_each_rule_bars_by_its_own_condition(connection, rule):
    assert reason(connection, **CHANGES[rule.reason]) == rule.reason


def test_the_first_rule_that_holds_counts(connection):
    order = [rule.reason for rule in RULES]
    for first, second in combinations(order, 2):
        both = reason(connection, **{**CHANGES[second], **CHANGES[first]})
        assert both is not None and order.index(both) <= order.index(first), (first, second)


def test_every_reason_is_one_of_the_closed_type_in_its_order():
    assert get_args(BarReason) == (*(rule.reason for rule in RULES), UNREAD)


def test_every_new_trajectory_is_freezable_or_counted_with_a_reason(connection, settings):
    counted = count_freezable(connection, settings, NOW)
    new = value(
        connection,
        """
        SELECT count(*) FROM babylon_rl.episodes e CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i (id)
        JOIN trajectories t ON t."trajectoryId" = i.id WHERE NOT t."usedInTraining" AND e."window" >= '2025-10-26'
        """,
    )
    assert counted.trajectories + sum(counted.not_trainable.values()) == new > 600
    assert set(counted.not_trainable) <= set(get_args(BarReason))
