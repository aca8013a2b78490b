"""All deliberate errors of the pipeline, as one tree.

The exit code of a command is 3 (something outside failed) unless the class says another. A message says what happened, where, and what to
do; it never holds a secret.
"""

from importlib.util import find_spec


class BabylonError(Exception):
    """An error that the user can act on; printed without a traceback."""

    exit_code = 3


class SettingsError(BabylonError, ValueError):
    """A setting is missing, malformed or out of range; the message lists all of them."""

    exit_code = 2


class UsageError(BabylonError, ValueError):
    """A command was called with arguments that do not fit together."""

    exit_code = 2


class RequestRefused(UsageError):
    """A field of a chat request cannot be served. ``param`` names the field, ``code`` is OpenAI's code of the error, where it has one."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class CheckFailed(BabylonError):
    """A check ran and failed."""

    exit_code = 1


class DatabaseError(BabylonError):
    """The database cannot do the requested operation."""


class DatabaseUnreachable(DatabaseError, ConnectionError):
    """No server answers at the address."""


class SchemaMismatch(DatabaseError):
    """A required table or column is missing, or a migration does not fit."""


class EmbeddedServerError(DatabaseError, OSError):
    """The embedded Postgres cannot be made, started or stopped."""


class MarketError(BabylonError, ValueError):
    """A market snapshot or an agent's answer cannot be used."""


class ModelError(BabylonError):
    """A model cannot be used."""


class ModelUnavailable(ModelError, LookupError):
    """Weights or an endpoint are not there."""


class CheckpointError(ModelError, ValueError):
    """A checkpoint is damaged, incomplete, or made for another base model."""


class JudgeError(BabylonError):
    """A judge cannot be asked."""


class JudgeUnavailable(JudgeError, ConnectionError):
    """The judge is down or fails too often; a later try may succeed."""


class JudgeRefused(JudgeError, ValueError):
    """The judge refuses a request for a reason that no retry cures.

    ``for_all``: it would refuse every other request too (credentials, the model's name).
    """

    def __init__(self, message: str, *, for_all: bool = True) -> None:
        super().__init__(message)
        self.for_all = for_all


class ExportError(BabylonError):
    """An export cannot be written to its destination."""


class BackupError(BabylonError):
    """A file is no whole backup."""


class ReleaseRefused(BabylonError):
    """The state of a version or of its rollout forbids a transition."""


class MissingPackage(BabylonError, ImportError):
    """A package of an extra is not installed; the message says how to install it."""


class TrainingError(BabylonError):
    """A training cannot go on."""


class NoTrainer(TrainingError):
    """The settings choose no trainer, one that is not available, or another than the batch's."""

    exit_code = 2


class NothingToTrain(TrainingError):
    """No freezable episode, no spread of scores, or no trainable token."""

    exit_code = 1


class BatchConflict(TrainingError):
    """The batch, or a trajectory in it, belongs to another live run."""


class TrainingPaused(TrainingError, ConnectionError):
    """The training service does not answer; the next run resumes the unchanged batch."""


class Diverged(TrainingError, ArithmeticError):
    """The loss or the policy left its bounds; nothing was published."""


# Packages that only a part of the work needs, and the extra of pyproject.toml that installs each.
EXTRAS = {
    **dict.fromkeys(("gguf", "huggingface_hub", "peft", "safetensors", "tokenizers", "torch", "transformers"), "train"),
    "litellm": "judge",
    "wandb": "wandb",
    **dict.fromkeys(("art", "openai"), "remote"),
    **dict.fromkeys(("celery", "dagster_celery", "redis"), "celery"),
    **dict.fromkeys(("dagster_aws", "s3fs"), "s3"),
    "dagster_k8s": "k8s",
    "opentelemetry": "otel",
}


def first_line(error: BaseException | str, without: str | None = None) -> str:
    """First line of an error or message; of an empty one ``without``, or its type."""
    return next(iter(str(error).strip().splitlines()), without or type(error).__name__)


def first_cause(error: BaseException) -> BaseException:
    """The error at which a chain of causes began."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_clause(error: BaseException) -> str:
    """``first_line`` without its full stop, for the middle of a sentence."""
    return first_line(error).rstrip(".")


def require(*packages: str) -> None:
    """Refuse to go on without packages of an extra, before any of them is imported. Raises MissingPackage: one of them is not installed."""
    for package in packages:
        if find_spec(package) is None:
            sentence = missing_package(package) or f"The package {package} is not installed: `pip install {package.replace('_', '-')}`."
            raise MissingPackage(sentence, name=package)


def missing_package(module: str | None) -> str | None:
    """Advice for a module that cannot be imported; None if no extra would install it."""
    package = (module or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return f"The package {package} is not installed. Run `make setup`, or `pip install 'babylon-rl[{extra}]'`, then the command again."
