"""Draws by name: the same seed and names always give the same draw.

Neither the process nor the order of the draws matters.
"""

import hashlib
import random


def chance(seed: int, *names: str | int) -> random.Random:
    """Random generator for a seed and some names."""
    key = "\x1f".join(map(str, (seed, *names)))
    return random.Random(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def digest(text: str) -> str:
    """Short hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
