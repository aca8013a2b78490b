"""Every error that the pipeline raises on purpose, as one tree.

    BabylonError                      exit code 3: something outside failed
    ├── SettingsError                 2: an environment variable or option is not allowed
    ├── UsageError                    2: the command was asked for something that makes no sense
    ├── CheckFailed                   1: a check ran and the answer is no
    ├── DatabaseError                 3
    │   ├── DatabaseUnreachable       3: no server answers at the address
    │   ├── SchemaMismatch            3: a table or column is missing, or a migration is half applied
    │   └── EmbeddedServerError       3: the embedded Postgres cannot be made or started
    ├── MarketError                   3: a snapshot, market or agent answer is not usable
    ├── ModelError                    3
    │   ├── ModelUnavailable          3: weights or an endpoint are not there
    │   └── CheckpointError           3: a checkpoint is damaged or does not match its base
    ├── ExportError                   3: an export cannot be written where it was to go
    └── TrainingError                 3
        ├── NoTrainer                 2: the settings choose no trainer that there is
        ├── NothingToTrain            1: no freezable episode, no spread, or no trainable token
        ├── BatchConflict             3: the batch or a trajectory belongs to another live run
        └── Diverged                  3: the loss or the policy left its bounds; nothing was published

A message says what happened, where, and what to do; it never holds a secret.
"""


class BabylonError(Exception):
    """Something that the user can act on; printed without a traceback."""

    exit_code = 3


class SettingsError(BabylonError, ValueError):
    """A setting is missing, malformed or out of range; the message lists all of them."""

    exit_code = 2


class UsageError(BabylonError, ValueError):
    """A command was asked for something that makes no sense."""

    exit_code = 2


class CheckFailed(BabylonError):
    """A check ran and the answer is no."""

    exit_code = 1


class DatabaseError(BabylonError):
    """The database cannot do what was asked."""


class DatabaseUnreachable(DatabaseError, ConnectionError):
    """No server answers at the address."""


class SchemaMismatch(DatabaseError):
    """A table or column that is needed is not there, or a migration does not fit."""


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


class ExportError(BabylonError):
    """An export cannot be written where it was to go."""


class TrainingError(BabylonError):
    """A training cannot go on."""


class NoTrainer(TrainingError):
    """The settings choose no trainer, or one that is not available."""

    exit_code = 2


class NothingToTrain(TrainingError):
    """No freezable episode, no spread of scores, or no trainable token."""

    exit_code = 1


class BatchConflict(TrainingError):
    """The batch, or a trajectory in it, belongs to another live run."""


class Diverged(TrainingError, ArithmeticError):
    """The loss or the policy left its bounds; nothing was published."""
