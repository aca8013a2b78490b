"""Trainers of iterations: their base (protocol.py), and one module or folder for each."""
