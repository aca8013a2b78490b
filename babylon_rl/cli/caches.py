"""Where other people's libraries may write: into the state directory, so that nothing is left in a home directory.

What make sets in scripts/environment.sh, for a command that is run without it. A variable that the user has set stays.
"""

import os
from pathlib import Path

from babylon_rl.errors import SettingsError
from babylon_rl.settings import load_settings


def variables(home: Path) -> dict[str, str]:
    """The environment of the libraries for the state directory ``home``: caches, and no telemetry."""
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
    }


def keep_caches_at_home() -> None:
    """Set these variables in this process, before any of the libraries is imported, and so for every program that it starts.

    This writes the environment, which only the settings read: the variables are the libraries', and none of ours is among them.
    """
    try:
        home = load_settings().home
    except SettingsError:
        return  # the command says so itself, if it needs the settings
    for name, value in variables(home).items():
        os.environ.setdefault(name, value)
