"""Checks of a batch's checkpoint: errors block the release, warnings ask for a person's review."""

from collections.abc import Iterator

import dagster as dg

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon

CHECKS = {
    "checkpoint_whole": "The checkpoint's files are whole and match their checksums.",
    "iterations_complete": "Every iteration of the training that was asked for is on record.",
    "loss_finite": "The training's loss is a finite number.",
    "loss_falls": "The loss is lower in the later half of the iterations.",
    "scores_spread": "The scores of every group that trained differ.",
    "tokens_trained": "Every iteration had tokens with a gradient.",
    "no_leakage": "What trained, read once more, holds nothing that became known only after its hour.",
    "policy_in_bounds": "The policy stayed near its base and did not collapse into one action.",
    "checkpoint_answers": "The checkpoint loads on its base and answers a prompt that it was trained on.",
}
WARNINGS = frozenset({"loss_falls", "scores_spread"})


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(name, asset="trained_checkpoint", description=description, partitions_def=batches)
        for name, description in CHECKS.items()
    ],
    can_subset=True,
)
def checkpoint_checks(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    from babylon_rl.training import looking_back as look

    batch_id = context.op_execution_context.partition_key
    with babylon.connection() as connection:
        finished = look.read_finished(connection, batch_id)
        if finished is None:
            raise dg.Failure(f"There is no batch {batch_id} of this pipeline.", allow_retries=False)
        verdicts = {
            "checkpoint_whole": lambda: look.whole(finished),
            "iterations_complete": lambda: look.complete(finished),
            "loss_finite": lambda: look.finite(finished),
            "loss_falls": lambda: look.falling(finished),
            "scores_spread": lambda: look.spread(finished),
            "tokens_trained": lambda: look.trainable(finished),
            "no_leakage": lambda: look.no_leakage(connection, finished, babylon.settings),
            "policy_in_bounds": lambda: look.in_bounds(finished),
            "checkpoint_answers": lambda: look.answers(connection, finished, babylon.settings),
        }
        # Only selected checks run, as the expensive ones load a model. A check that could not be tried only warns.
        for key in context.op_execution_context.selected_asset_check_keys:
            verdict = verdicts[key.name]()
            yield dg.AssetCheckResult(
                passed=verdict.passed,
                asset_key=key.asset_key,
                check_name=key.name,
                severity=dg.AssetCheckSeverity.WARN if key.name in WARNINGS or not verdict.tried else dg.AssetCheckSeverity.ERROR,
                description=verdict.words,
                metadata=verdict.numbers,
            )


checks_of_batches = [checkpoint_checks]
