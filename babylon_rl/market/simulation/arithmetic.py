"""Randomness and the few functions that the market needs, from basic floating-point operations alone.

``math.exp``, ``math.log`` and ``random.gauss`` may differ in the last bit between C libraries; additions, products, quotients and
square roots may not (IEEE 754). So a seed gives the same bytes on every platform without rounding that could hide a difference.
"""

import math
import random

_FLIPS = 192
_SPREAD = math.sqrt(_FLIPS / 4 + 1 / 12)  # standard deviation of that many fair coins and one uniform number
_LN_2 = 0.6931471805599453
_SURE = 1e9  # odds


def stream(seed: int | str, *concern: object) -> random.Random:
    """The generator of one concern: drawing more or less from it moves no other. ``0`` and ``"0"`` are the same seed."""
    return random.Random("/".join(map(str, ("babylon", seed, *concern))))


def normal(rng: random.Random) -> float:
    """A standard normal deviate. The heads of 192 coins, smoothed by a uniform number and scaled to variance 1."""
    return (rng.getrandbits(_FLIPS).bit_count() - _FLIPS / 2 + rng.random() - 0.5) / _SPREAD


def odds(probability: float) -> float:
    """The odds of a probability."""
    return probability / (1.0 - probability) if probability < 1.0 else _SURE


def growth(x: float) -> float:
    """(e^x - 1) / x, and 1 at 0. The mean of a price while its log moves by ``x``, over the price before."""
    if abs(x) > 0.25:
        return (exp(x) - 1.0) / x
    total = 1.0
    for n in range(12, 1, -1):
        total = 1.0 + total * x / n
    return total


def exp(x: float) -> float:
    """e^x for |x| < 500, to about 1e-15 of itself."""
    halvings = 0
    while abs(x) > 0.25:
        x *= 0.5
        halvings += 1
    total = 1.0
    for n in range(13, 0, -1):
        total = 1.0 + total * x / n
    for _ in range(halvings):
        total *= total
    return total


def log(x: float) -> float:
    """The natural logarithm of a positive number, to about 1e-15."""
    mantissa, exponent = math.frexp(x)
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = mantissa * 2.0, exponent - 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, total = s * s, 0.0
    for n in range(23, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 * s * total + exponent * _LN_2


def log_growth(x: float) -> float:
    """log(1 + x) / x, and 1 at 0, for x > -1. The inverse of `growth`, in the log move per unit paid."""
    if abs(x) > 0.25:
        return log(1.0 + x) / x
    s = x / (2.0 + x)
    square, total = s * s, 0.0
    for n in range(19, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 / (2.0 + x) * total
