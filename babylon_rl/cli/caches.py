"""Environment of third-party libraries: caches in the state directory, threads that sleep while idle.

For commands that run without make: scripts/environment.sh sets the same. A variable that the user has set stays.
"""

import os
from contextlib import suppress
from pathlib import Path

from babylon_rl.errors import SettingsError
from babylon_rl.settings import load_settings

# Dagster and multiprocessing put unix sockets into TMPDIR, whose paths end at 107 bytes: a longer state directory keeps the system's.
LONGEST_HOME = 64


def variables(home: Path) -> dict[str, str]:
    """Library variables for the state directory ``home``: caches, no telemetry, no spinning threads."""
    cache = home / "cache"
    return {
        "HF_HOME": str(cache / "huggingface"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "WANDB_DIR": str(cache),
        "WANDB_CACHE_DIR": str(cache / "wandb"),
        "WANDB_CONFIG_DIR": str(cache / "wandb-config"),
        "WANDB_DATA_DIR": str(cache / "wandb-data"),
        "XDG_CACHE_HOME": str(cache),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def keep_caches_at_home() -> None:
    """Set the variables and TMPDIR in this process, for itself and its children.

    Call it before any of the libraries is imported. Elsewhere only the settings touch the environment; these variables belong to the
    libraries, and none is a setting.
    """
    try:
        home = load_settings().home
    except SettingsError:
        return  # the command says so itself, if it needs the settings
    for name, value in variables(home).items():
        os.environ.setdefault(name, value)
    temporary = home / "tmp"
    if "TMPDIR" not in os.environ and len(str(home)) <= LONGEST_HOME:
        with suppress(OSError):  # a directory that cannot be made: the command says so where it needs it
            temporary.mkdir(parents=True, exist_ok=True)
            os.environ["TMPDIR"] = str(temporary)
