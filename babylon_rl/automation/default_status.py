"""Default status of all sensors and schedules (AUTOMATION_STATUS); the page *Automation* switches each of them."""

import dagster as dg

from babylon_rl.settings import load_settings

_RUNNING = load_settings().automation_status == "running"
SENSORS = dg.DefaultSensorStatus.RUNNING if _RUNNING else dg.DefaultSensorStatus.STOPPED
SCHEDULES = dg.DefaultScheduleStatus.RUNNING if _RUNNING else dg.DefaultScheduleStatus.STOPPED
