"""Inputs that no one thought of, for what reads other programs' bytes. `make fuzz` tries fresh ones for an hour at each reader.

``corpus`` holds, for each reader, inputs that found a fault or come near one: JSON texts, one a line, whose characters are bytes. Every run
begins with them and makes new ones of their pieces (hypothesis), or changes them for new coverage (atheris). What `make fuzz` finds
is added there with its fix.
"""
