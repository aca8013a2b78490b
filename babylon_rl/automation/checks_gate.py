"""The criteria of the gate as checks of every benchmark report, each with its numbers."""

from collections.abc import Iterator

import dagster as dg

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon

CHECKS = {
    "improvement": "The whole paired interval of its P&L over the reference is above MIN_IMPROVEMENT.",
    "better_than_base": "It is shown to earn more than the base.",
    "better_than_nothing": "It is shown to earn more than doing nothing.",
    "valid_answers": "It gives no more unusable answers than the reference.",
    "no_collapse": "No single action is more than 95 % of its decisions.",
    "enough_markets": "It played enough unseen markets for an interval to hold.",
}


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(name, asset="benchmark_report", description=description, partitions_def=batches)
        for name, description in CHECKS.items()
    ],
    can_subset=True,
)
def gate_of_batches(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    """The stored results of the gate's criteria for one batch's version."""
    from babylon_rl.store.benchmarks import read_stored_report

    batch_id = context.partition_key
    with babylon.connection() as connection:
        report = read_stored_report(connection, batch_id)
    rows = () if report is None else report.rows
    criteria = next((row.get("checks", ()) for row in rows if report is not None and row["model"] == report.version), ())
    results = {check["name"]: check for check in criteria}
    none_compared = {"found": "not_compared", "words": f"{batch_id} has no benchmark report." if report is None else report.reason}
    # A criterion without a result of its own: its opponent is the reference itself.
    by_reference = {"found": "pass", "words": "That is the reference: see improvement."}
    for key in context.op_execution_context.selected_asset_check_keys:
        check = results.get(key.name, by_reference if results else none_compared)
        yield dg.AssetCheckResult(
            passed=check["found"] == "pass",
            asset_key=key.asset_key,
            check_name=key.name,
            severity=dg.AssetCheckSeverity.WARN,
            description=check["words"],
            metadata={"found": check["found"]},
        )


checks_of_gate = [gate_of_batches]
