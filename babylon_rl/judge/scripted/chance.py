"""Draws that depend on nothing but what is named: the same seed and names give the same draw, in any process and any order."""

import hashlib
import random


def chance(seed: int, *names: str | int) -> random.Random:
    """A generator of its own for what the names say."""
    said = "\x1f".join(map(str, (seed, *names)))
    return random.Random(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def digest(text: str) -> str:
    """A short name of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
