"""Training outside this process: openpipe-art's serverless service, and its backend on a GPU of this machine."""
