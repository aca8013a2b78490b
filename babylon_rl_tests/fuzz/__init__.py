"""Inputs that no one thought of, for what reads answers of other programs. `make fuzz` tries fresh ones for an hour.

``corpus`` holds, for each reader, inputs that found a fault or come near one: JSON texts, one a line, whose characters are bytes. Every run
begins with them and makes new ones of their pieces; an input that `make fuzz` finds is added there with its fix.
"""
