"""Training: freeze a batch, turn it into sequences, train it on one of the backends, register the version, keep lineage."""
