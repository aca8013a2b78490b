"""When things run: conditions move the hours, sensors start the batches, and launch.py does by hand what they do by themselves."""
