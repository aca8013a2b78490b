"""Trainers of iterations: their base (protocol.py), and one module or folder for each."""

from babylon_rl.training.backends.protocol import address_of, choose_trainer, trainer_choice

__all__ = ["address_of", "choose_trainer", "trainer_choice"]
