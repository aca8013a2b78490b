"""What a process of a kill test runs: trainings, one after the other, until nothing is left to train or a signal ends it."""

from datetime import datetime, timedelta
from pathlib import Path

from babylon_rl.models.threads import set_threads
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.training.backends.protocol import choose_trainer
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze

# A post of which nobody knows is given up after 4 s here, which a stand-in's job of 0.2 s never takes.
TIMES = Times(timedelta(seconds=4), timedelta(hours=1), poll_s=0.02, longest_poll_s=0.05, list_lag_s=1.0, timeout_s=10.0)


def train_all(url: str, settings: Settings, now: datetime, most: int, alive: Path) -> None:
    """Finish what has not ended, then freeze and train at most ``most`` trajectories at a time; ``alive`` is made before anything else."""
    set_threads(1)
    alive.touch()
    with connect(url) as connection:
        while True:
            pending = pending_batches(connection)
            batch = pending[0] if pending else freeze(connection, settings, now, max_trajectories=most).batch
            if batch is None:
                return
            prepare_batch(connection, batch.batch_id, settings, now)
            trainer = choose_trainer(settings) if settings.wandb_api_key is None else ServerlessTrainer(settings, TIMES)
            train_batch(connection, batch.batch_id, settings, now, trainer)
