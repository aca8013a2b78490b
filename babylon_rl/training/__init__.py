"""Training: freeze a batch, convert it, train it on a backend, register the version."""
