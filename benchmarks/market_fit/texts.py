"""How texts of a game are built and what their words suggest: templates, length, and a lexicon of some 130 words written down here.

The lexicon is deliberately small and has no weights: it answers whether a text *sounds* good or bad, not what it means. A word
counts once, in any of the listed forms; a negation just before it ("not", "denies") turns it round.
"""

import re
from collections.abc import Iterable

_GOOD = """approve approved approves award beat beats best booming boost boosts breakthrough brilliant celebrate charitable charity clears
    confirm confirmed confirms deal donation gain gains generous great growth huge impresses improve launch launches leap partner
    partners praise profit profits promise promises raise raises record rise rises signed signs soar strong success surge surges
    triumph upgrade upgrades win wins"""
_BAD = """abandoned accuse alleged ban bankrupt boycott cancel cancelled cancels cheating collapse collapses conflict crash crisis
    criticizing cut cuts dead debt defaults disaster disastrous downgrade evasion expose exposé fail failed fails failure fall falling fires
    flee fraud guilty hack hackers hoarding investigation lawsuit lose loses loss mock miss misses penalty probe quits recall recalls reject
    rejected rejects scandal slashes stall stalls sue sued warns weak worst"""
POSITIVE = frozenset(_GOOD.split())
NEGATIVE = frozenset(_BAD.split())
NEGATIONS = frozenset({"not", "no", "never", "denies", "deny", "without", "isn't", "won't"})

_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_NUMBER = re.compile(r"\$?\d[\d,.]*%?")
_AUTHOR = re.compile(r"^.+?(?='s take on:)")  # the game's only way to open a post


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and numbers."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def direction(text: str) -> int:
    """+1 when more words of the lexicon sound good than bad, -1 when fewer, 0 when as many or none."""
    found = words(text)
    score = 0
    for position, word in enumerate(found):
        value = (word in POSITIVE) - (word in NEGATIVE)
        negated = not NEGATIONS.isdisjoint(found[max(0, position - 2) : position])
        score += -value if negated else value
    return (score > 0) - (score < 0)


def template(text: str, questions: Iterable[str], companies: Iterable[str]) -> str:
    """The text with the questions, companies, authors and numbers in it replaced by <question>, <company>, <author> and <number>."""
    shape = _AUTHOR.sub("<author>", text)
    for question in questions:
        shape = shape.replace(question, "<question>")
    for company in sorted(companies, key=len, reverse=True):
        shape = shape.replace(company, "<company>")
    return _NUMBER.sub("<number>", shape)


def names(text: str, companies: Iterable[str]) -> tuple[str, ...]:
    """The companies whose whole name stands in the text, in the order given."""
    return tuple(company for company in companies if re.search(rf"(?<!\w){re.escape(company)}(?!\w)", text))
