"""Prompt of a judge: rendering of an hour and its agents."""
