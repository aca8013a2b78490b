"""From the rows of an hour to episodes: decode, reject with a reason, stitch, find the messages that were really served."""
