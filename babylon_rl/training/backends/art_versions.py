"""Capabilities of the installed openpipe-art, read from its function signatures.

Versions and backends differ. 0.5.18 (the newest for Python 3.11) trains a text without log-probabilities on a GPU only; from 0.5.20
(Python 3.12) the service does too. 0.5.23 requires a ``run_name``, which replaces ``name`` as the model's name on the wire.
"""

import inspect
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WITHOUT_LOGPROBS = "allow_training_without_logprobs"
RUN_NAME = "run_name"
FIRST_WITHOUT_LOGPROBS = "0.5.20"


@dataclass(frozen=True, slots=True)
class Installed:
    """Parameters of a backend's ``train`` and of a trainable model; the version is for messages."""

    version: str
    train: frozenset[str]
    model: frozenset[str]

    @property
    def trains_without_logprobs(self) -> bool:
        """True when texts recorded without log-probabilities can be trained (at a ratio of 1)."""
        return WITHOUT_LOGPROBS in self.train

    def accepted(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Select the arguments of ``wanted`` that ``train`` accepts."""
        return {name: value for name, value in wanted.items() if name in self.train}

    def model_arguments(self, name: str) -> dict[str, str]:
        """Return arguments that name a model the same on the wire in every version."""
        return {"name": name} | ({RUN_NAME: name} if RUN_NAME in self.model else {})

    def __str__(self) -> str:
        return f"openpipe-art {self.version} on Python {platform.python_version()}"


def load_art() -> Any:
    """Import the package `art` without network access."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read at import: without it a table comes from the net
    with _unpatched():
        import art

    return art


@contextmanager
def _unpatched() -> Iterator[None]:
    """Restore a transformers function that the import of art replaces.

    The replacement expects other arguments than the locked transformers version passes at every forward.
    """
    try:
        from transformers import masking_utils
    except ImportError:  # no torch here, and nothing to patch
        yield
        return
    untouched = masking_utils._preprocess_mask_arguments
    yield
    masking_utils._preprocess_mask_arguments = untouched


def installed(train: Callable[..., Any], model: Callable[..., Any]) -> Installed:
    """Inspect a backend's ``train`` and the class of trainable models."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("openpipe-art")
    except PackageNotFoundError:
        number = "of an unknown version"
    return Installed(number, _parameters(train), _parameters(model))


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
