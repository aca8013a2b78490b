"""The public recorder: what an agent saw, was asked, answered and did, written as the game's own recorder writes it.

A trajectory lives in memory until it ends and is then written whole with its calls, so an agent that dies leaves nothing half
written. ``TrajectoryRecorder.connect()`` for threads, ``await AsyncTrajectoryRecorder.connect()`` for tasks; docs/recording.md.
"""

from babylon_rl.recorder.rows import CallRow, Recording, milliseconds
from babylon_rl.recorder.tasks import AsyncTrajectoryRecorder
from babylon_rl.recorder.threads import TrajectoryRecorder
from babylon_rl.recorder.writer import RecorderReport

__all__ = ["AsyncTrajectoryRecorder", "CallRow", "RecorderReport", "Recording", "TrajectoryRecorder", "milliseconds"]
