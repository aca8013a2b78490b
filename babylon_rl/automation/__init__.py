"""Automation: conditions materialize hours, sensors start batches, launch.py runs both on command."""
