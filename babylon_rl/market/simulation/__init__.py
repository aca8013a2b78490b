"""Market engine of spawned agents, the harness and the benchmark.

Scenarios are written before anybody trades, and the exchange adds the effect of trading.

It knows no model and no database; the same seed gives the same bytes on every platform.
"""
