"""The sensor that looks for causes of alerts and sends them."""

import dagster as dg

from babylon_rl.alerts import send_alerts
from babylon_rl.assets.resources import Babylon


@dg.sensor(
    name="send_alerts",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for causes of alerts, and sends each once to the channels that are set; what failed is tried again.",
)
def send_alerts_sensor(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        return dg.SkipReason(send_alerts(connection, babylon.settings, babylon.now()).sentence)
