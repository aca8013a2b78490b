"""Pace of automation: AUTOMATION_STATUS, and AUTOMATION_SECONDS between two looks of a sensor.

The page *Automation* switches each of them. The sensor end_dead_runs follows neither setting.
"""

import dagster as dg

from babylon_rl.settings import Settings, load_settings

_SETTINGS = load_settings()
_RUNNING = _SETTINGS.automation_status == "running"
SENSORS = dg.DefaultSensorStatus.RUNNING if _RUNNING else dg.DefaultSensorStatus.STOPPED
SCHEDULES = dg.DefaultScheduleStatus.RUNNING if _RUNNING else dg.DefaultScheduleStatus.STOPPED


def every(seconds: int) -> int:
    """Interval of a sensor that looks every ``seconds`` with AUTOMATION_SECONDS at its default."""
    usual: float = Settings.model_fields["automation_seconds"].default
    return max(1, round(seconds * _SETTINGS.automation_seconds / usual))
