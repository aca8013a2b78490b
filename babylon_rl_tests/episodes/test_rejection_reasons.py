"""Rejection reasons are a closed type: the code can give no other, and each is stored and counted under its name."""

import ast
from pathlib import Path

import babylon_rl.episodes.decode as decode
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.types import REJECTION_REASONS
from babylon_rl_tests.rows import AFTER, WINDOW, insert, make_trajectory

ONE_ROW_EACH = {
    "evaluation": make_trajectory("t1", isEvaluation=True),
    "not_training_data": make_trajectory("t2", isTrainingData=False),
    "benchmark": make_trajectory("t3", scenarioId="benchmark-1"),
    "malformed_json": make_trajectory("t4", steps='[{"'),
    "malformed_shape": make_trajectory("t5", steps="{}"),
    "no_steps": make_trajectory("t6", steps="[]"),
}


def test_every_reason_is_stored_and_counted_in_the_order_of_the_rules(connection, settings):
    insert(connection, "trajectories", list(ONE_ROW_EACH.values()))
    summary = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    stored = connection.execute('SELECT "trajectoryId", "reason" FROM babylon_rl.rejections ORDER BY 1').fetchall()
    assert stored == [(row["trajectoryId"], reason) for reason, row in ONE_ROW_EACH.items()]
    assert list(summary.rejected.items()) == [(reason, 1) for reason in REJECTION_REASONS]
    assert summary.rows == sum(summary.rejected.values())


def test_decoding_gives_no_reason_beyond_the_closed_type():
    calls = [node for node in ast.walk(ast.parse(Path(decode.__file__).read_text())) if isinstance(node, ast.Call)]
    given = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Fault"]
    assert {reason.value for reason in given if isinstance(reason, ast.Constant)} == set(REJECTION_REASONS)
    assert all(isinstance(reason, ast.Constant) for reason in given)
