"""One market engine for spawned agents, the harness and the benchmark: what happens by itself, and what trading does to it.

It knows no model and no database; the same seed gives the same bytes on every platform.
"""
