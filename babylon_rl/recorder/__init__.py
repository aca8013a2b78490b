"""Public recorder of agent trajectories, in the format of the game's own recorder.

It records what an agent observed, requested, answered and did. A trajectory stays in memory until it ends and is then written whole with
its calls, so an agent that dies leaves no partial rows. ``TrajectoryRecorder.connect()`` for threads,
``await AsyncTrajectoryRecorder.connect()`` for tasks; docs/howto/recording.md.
"""

from babylon_rl.recorder.recorders import AsyncTrajectoryRecorder, TrajectoryRecorder
from babylon_rl.recorder.rows import Recording, milliseconds
from babylon_rl.recorder.writer import RecorderReport

__all__ = ["AsyncTrajectoryRecorder", "RecorderReport", "Recording", "TrajectoryRecorder", "milliseconds"]
