"""Benchmark snapshots as files: written from a scenario, checked, loaded, and turned back into a scenario that can be played."""

from babylon_rl.evaluation.snapshot_file.files import load, save
from babylon_rl.evaluation.snapshot_file.optimality import optimality, optimum_of
from babylon_rl.evaluation.snapshot_file.optimum import PolicyClass
from babylon_rl.evaluation.snapshot_file.origin import benchmark_scenario
from babylon_rl.evaluation.snapshot_file.replay import to_scenario
from babylon_rl.evaluation.snapshot_file.schema import VERSION, Snapshot, decode, encode
from babylon_rl.evaluation.snapshot_file.validation import validate
from babylon_rl.evaluation.snapshot_file.writing import from_scenario

__all__ = [
    "VERSION",
    "PolicyClass",
    "Snapshot",
    "benchmark_scenario",
    "decode",
    "encode",
    "from_scenario",
    "load",
    "optimality",
    "optimum_of",
    "save",
    "to_scenario",
    "validate",
]
