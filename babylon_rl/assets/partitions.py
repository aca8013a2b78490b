"""Hours and batches: the two ways in which the graph is cut.

An hour's key is its window id, so that UI, CLI, database and logs name it the same way; a batch's key is its batch id.
"""

import dagster as dg

from babylon_rl.settings import load_settings
from babylon_rl.windows import WINDOW_FORMAT

hours = dg.HourlyPartitionsDefinition(start_date=load_settings().first_window, fmt=WINDOW_FORMAT)
BATCHES = "batch"
batches = dg.DynamicPartitionsDefinition(name=BATCHES)
