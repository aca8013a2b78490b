"""How property tests run: the same examples every time, on any machine and however slow, and a blob that repeats a failure.

ROUNDS=20 in the environment tries twenty times as many examples, fresh ones, and makes a failing one small, which takes minutes: with
pytest's --timeout=0.
"""

import os

from hypothesis import HealthCheck, Phase, settings

ROUNDS = int(os.environ.get("ROUNDS", "1"))
_PHASES = (Phase.explicit, Phase.generate)


def repeatable(examples: int) -> settings:
    """The settings of a test with so many examples, which share its fixtures."""
    return settings(
        max_examples=examples * ROUNDS,
        derandomize=ROUNDS == 1,
        phases=_PHASES if ROUNDS == 1 else (*_PHASES, Phase.shrink),
        print_blob=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
