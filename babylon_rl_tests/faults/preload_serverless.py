"""As preload_cpu.py, for serverless training: importing art changes transformers, so that the CPU trainer does not work beside it."""

import babylon_rl_tests.faults.killed_run  # noqa: F401
from babylon_rl.training.backends.openpipe_art import load_art

load_art()
