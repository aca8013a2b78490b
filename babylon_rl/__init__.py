"""Turns the recorded trajectories of Babylon's trading agents into better agents."""

__version__ = "0.1.0"
