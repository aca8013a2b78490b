"""What the server that forks the processes of a kill test imports, once: a kill is to strike a training, not its imports."""

import peft  # noqa: F401
import transformers  # noqa: F401

import babylon_rl_tests.faults.killed_run  # noqa: F401
