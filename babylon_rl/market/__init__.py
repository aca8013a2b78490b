"""Outcomes of recorded hours, and the simulated market in which agents trade."""
