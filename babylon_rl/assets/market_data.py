"""Source ``market_data``: the game's prices, events, questions and probabilities by hour; never written."""

import dagster as dg

from babylon_rl.assets.metadata import HOURS_GROUP, column_schema
from babylon_rl.assets.observed import MARKET_DATA, observe
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.sources import owned, report_changes

COLUMNS = column_schema(
    StockPrice=("table", "price of an organization at a moment"),
    WorldEvent=("table", "what happened, to whom, about which question"),
    Question=("table", "prediction questions and their official answers"),
    PredictionPriceHistory=("table", "probabilities, and the moment of each resolution"),
)


@dg.observable_source_asset(
    name="market_data",
    partitions_def=hours,
    group_name=HOURS_GROUP,
    tags={"dagster/kind/postgres": "", "dagster/kind/source": ""},
    metadata=COLUMNS,
    description="Prices, events, questions and probabilities, by hour. A late official answer changes the version of every hour in which "
    "the question was open.",
)
def _market_data(context: dg.OpExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.DataVersionsByPartition:
    return report_changes(context, observe(context.instance, babylon, full=True).events_of(MARKET_DATA))


market_data = owned(_market_data)
