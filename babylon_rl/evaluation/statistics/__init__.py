"""Statistics of benchmarks and live comparisons, checked by simulation in the tests.

Snapshots (markets) are the independent draws: repeats and seeds of one snapshot are a cluster and count once. ``intervals``
serves experiments of a fixed size, ``live`` data that are looked at while they come in, and sequences of tests.
"""
