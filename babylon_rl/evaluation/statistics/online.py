"""Levels of an unending sequence of tests with a bounded false discovery rate.

LORD++ (Ramdas, Yang, Wainwright and Jordan, Online control of the false discovery rate with decaying memory, NeurIPS 2017, section 3; after
Javanmard and Montanari, Annals of Statistics 46, 2018): each test spends a part of a wealth, and each discovery earns some back.
"""

from collections.abc import Sequence

ERROR_RATE = 0.05
_FIRST_WEALTH = 0.5  # of the error rate, the share that tests spend before the first discovery
_DECAY = 1.6  # of the weights, as in SAFFRON (Ramdas, Zrnic, Wainwright and Jordan, ICML 2018): more power within a hundred tests
_SUM = 2.285765666  # of 1 / n**_DECAY over all n


def _weight(age: int) -> float:
    """Share of a wealth spent by a test ``age`` tests after it was earned, 1 for the next."""
    return float(age**-_DECAY) / _SUM


def next_level(discoveries: Sequence[bool], error_rate: float = ERROR_RATE) -> float:
    """Level of the next test, from the outcomes of all earlier ones in order.

    The expected share of false ones among the discoveries is at most ``error_rate`` after every test, if each p-value is valid whatever the
    earlier outcomes were, as with data of its own it is. While no tested effect is real, that is the chance of any discovery at all.
    """
    test = len(discoveries) + 1
    first_wealth = _FIRST_WEALTH * error_rate
    earned = [number for number, discovery in enumerate(discoveries, 1) if discovery]
    level = _weight(test) * first_wealth
    if earned:
        level += (error_rate - first_wealth) * _weight(test - earned[0])
    return level + error_rate * sum(_weight(test - number) for number in earned[1:])
