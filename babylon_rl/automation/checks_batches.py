"""Checks of a batch: its checkpoint, whose errors block the release, and the gate's criteria.

A run of checks alone looks at the newest batch that is trained.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import described
from babylon_rl.assets.resources import Babylon
from babylon_rl.serving.dagster_client import PARTITION_TAG
from babylon_rl.store.batches import read_batches
from babylon_rl.store.connection import Connection

CHECKPOINT_CHECKS = {
    "checkpoint_whole": described(
        "The checkpoint's files are whole and match their checksums.",
        "look for a full or failing disk, then restore the directory from MODEL_STORAGE_URL, or train the batch's hours again.",
    ),
    "iterations_complete": described(
        "Every iteration of the training that was asked for is on record.",
        "do not deploy the version; `babylon-rl batches show BATCH` lists the iterations, and another training replaces it.",
    ),
    "loss_finite": described("The training's loss is a finite number.", "do not deploy the version; lower LEARNING_RATE."),
    "loss_falls": described(
        "The loss is lower in the later half of the iterations.",
        "nothing is broken: look at the spread of rewards and at LEARNING_RATE, and trust the benchmark.",
    ),
    "scores_spread": described(
        "The scores of every group that trained differ.", "such a group taught nothing: `babylon-rl scores HOUR` has the judge's reasons."
    ),
    "tokens_trained": described(
        "Every iteration had tokens with a gradient.", "record prompts whole (docs/howto/recording.md), or set TRAIN_SYNTHETIC=true."
    ),
    "no_leakage": described(
        "What trained, read once more, holds nothing that became known only after its hour.",
        "do not deploy the version; its metadata names the episodes, and the check no_leaks of the hour says where the text came from.",
    ),
    "policy_in_bounds": described(
        "The policy stayed near its base and did not collapse into one action.",
        "trust the benchmark alone; a lower LEARNING_RATE or a higher KL_PENALTY keeps the next one closer.",
    ),
    "checkpoint_answers": described(
        "The checkpoint loads on its base and answers a prompt that it was trained on.",
        "do not deploy the version; the words of the result name the file, base or service that failed.",
    ),
}
GATE_CHECKS = {
    "kept": described(
        "Its expected dollars in fresh training hours are not shown to be below its parent's.",
        "the version is not released: training undid what its parent could do. A lower LEARNING_RATE, or more hours, help.",
    ),
    "improvement": described(
        "The whole paired interval of its P&L over the reference is above MIN_IMPROVEMENT.",
        "nothing is broken: the version stays where it is. More hours, or another training, may bring one that passes.",
    ),
    "better_than_base": described(
        "It is shown to earn more than the base.",
        "the version is not released; `babylon-rl benchmark compare` shows where it loses.",
    ),
    "better_than_nothing": described(
        "It is shown to earn more than doing nothing.",
        "the version is not released: doing nothing earns as much.",
    ),
    "valid_answers": described(
        "It gives no more unusable answers than the reference.",
        "the version is not released; its decisions in the report's directory show the answers that cannot be used.",
    ),
    "no_collapse": described(
        "No single action is more than 95 % of its decisions.",
        "the version is not released: it repeats one action. A lower LEARNING_RATE, or hours in which agents act differently, help.",
    ),
    "enough_markets": described(
        "It played enough unseen markets for an interval to hold.",
        "raise BENCHMARK_MARKETS, or mend what kept it from playing: the reason stands in the report.",
    ),
}
WARNINGS = frozenset({"loss_falls", "scores_spread"})


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec(name, asset="trained_checkpoint", description=description) for name, description in CHECKPOINT_CHECKS.items()],
    can_subset=True,
)
def checkpoint_checks(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    from babylon_rl.training import checkpoint_checks as look

    with babylon.connection() as connection:
        batch_id = _batch(connection, context.run.tags)
        finished = None if batch_id is None else look.read_finished(connection, batch_id)
        if finished is None:
            missing = f"there is no batch {batch_id} of this pipeline."
            yield from (_not_measured(key, missing, batch_id) for key in context.op_execution_context.selected_asset_check_keys)
            return
        verdicts = {
            "checkpoint_whole": lambda: look.whole(finished, babylon.settings),
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
            # Without zeros, of which Dagster would plot a line on the check's page.
            metadata = {"batch": batch_id} | {name: number for name, number in verdict.numbers.items() if number}
            warns = key.name in WARNINGS or not verdict.tried
            yield _result(
                key, verdict.passed, verdict.words, metadata, dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR
            )


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec(name, asset="benchmark_report", description=description) for name, description in GATE_CHECKS.items()],
    can_subset=True,
)
def gate_of_batches(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    """The verdicts of the gate's criteria on one batch's version, in the gate's words."""
    from babylon_rl.store.benchmarks import read_report

    with babylon.connection() as connection:
        batch_id = _batch(connection, context.run.tags)
        report = None if batch_id is None else read_report(connection, batch_id)
    candidate = {} if report is None else next((row for row in report.rows if row["model"] == report.version), {})
    verdicts = {verdict["name"]: verdict for verdict in candidate.get("checks", ())}
    if report is not None and report.decision == "fail" and not candidate:
        # Refused before the gate's markets: there is no row of it, and one check that failed.
        verdicts["kept"] = {"name": "kept", "found": "fail", "words": report.reason.removesuffix(".")}
    for key in context.op_execution_context.selected_asset_check_keys:
        # A criterion without a verdict of its own: its opponent is the reference, with which improvement compares.
        verdict = verdicts.get(key.name, verdicts.get("improvement") if key.name != "kept" else None)
        if report is None or verdict is None:
            yield _not_measured(key, f"batch {batch_id} has no benchmark report." if report is None else report.reason, batch_id)
            continue
        same = "" if key.name in verdicts else f"the reference is {report.reference}, so the verdict is that of improvement: "
        metadata = {"batch": batch_id, "found": verdict["found"], "decision": f"{report.decision}: {report.reason}"}
        metadata |= {"improvement": candidate["improvement"]} if verdict["name"] == "improvement" else {}
        yield _result(key, verdict["found"] == "pass", f"{verdict['found'].capitalize()}: {same}{verdict['words']}.", metadata)


def _batch(connection: Connection, tags: Mapping[str, str]) -> str | None:
    """The batch of a run; for a run of checks alone the newest that is trained, if any."""
    newest = read_batches(connection, ("completed",), limit=1)
    return tags.get(PARTITION_TAG, newest[0].batch_id if newest else None)


def _not_measured(key: dg.AssetCheckKey, why: str, batch_id: str | None) -> dg.AssetCheckResult:
    return _result(key, False, f"Nothing measured: {'no batch has been trained yet.' if batch_id is None else why}")


def _result(
    key: dg.AssetCheckKey,
    passed: bool,
    words: str,
    metadata: Mapping[str, Any] | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=passed, asset_key=key.asset_key, check_name=key.name, severity=severity, description=words, metadata=metadata
    )


checks_of_batches = [checkpoint_checks, gate_of_batches]
