"""Snapshot files: written from a scenario, validated, loaded, and replayed."""

from babylon_rl.evaluation.snapshot_file.conversion import from_scenario, load, optimum_of, save, to_scenario
from babylon_rl.evaluation.snapshot_file.schema import VERSION, SnapshotDocument, benchmark_scenario, decode, encode
from babylon_rl.evaluation.snapshot_file.validation import validate

__all__ = [
    "VERSION",
    "SnapshotDocument",
    "benchmark_scenario",
    "decode",
    "encode",
    "from_scenario",
    "load",
    "optimum_of",
    "save",
    "to_scenario",
    "validate",
]
