"""Check for leaks: no training text holds facts that became known after its hour."""

from collections.abc import Sequence

import dagster as dg

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.verdicts import Finding, verdict
from babylon_rl.store.hindsight import StoredLeak, stored_leaks

SEQUENCES_LISTED = 20
ADVICE = (
    "These sequences never train. Find out how the text came into the agents' prompts, and stop it there: "
    "SELECT * FROM babylon_rl.leaks WHERE \"window\" = '{hour}' shows where each stands."
)


@dg.asset_check(
    asset="hindsight",
    partitions_def=hours,
    description="No training text holds outcomes, hidden answers, recorded gameKnowledge or scores.",
)
def no_leaks(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    with babylon.connection() as connection:
        leaks = stored_leaks(connection, context.partition_keys)
    by_hour: dict[str, list[StoredLeak]] = {}
    for leak in leaks:
        by_hour.setdefault(leak.window, []).append(leak)
    findings = {window: _finding(some) for window, some in by_hour.items()}
    return verdict(context, "no_leaks", findings, ADVICE, severity=dg.AssetCheckSeverity.ERROR, leaks=len(leaks))


def _finding(leaks: Sequence[StoredLeak]) -> Finding:
    names = tuple(dict.fromkeys(f"{leak.trajectory_id} {leak.call_id}" for leak in leaks))
    kinds = ", ".join(sorted({leak.kind for leak in leaks}))
    return Finding(f"{len(names)} sequences hold {kinds}, first {names[0]} ({leaks[0].detail})", names[:SEQUENCES_LISTED])


checks_of_hindsight = [no_leaks]
