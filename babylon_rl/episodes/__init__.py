"""Episodes from the rows of an hour: decode, reject, stitch, find the served messages."""
