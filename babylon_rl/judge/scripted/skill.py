"""Latent skill of an episode, 0..1, from its content alone.

Order and ids do not change it.

A marker (``skill=0.73``) gives it directly; otherwise the episode's profit or loss does, by a logistic curve of 100 dollars; otherwise
the hash of its text, without markup's escapes, white space and case, which is as good as chance but always the same.
"""

import hashlib
import html
import math
import re

_MARKER = re.compile(r"\bskill=([01](?:\.\d+)?)(?![\d.]*\d)")
_NAMED = r"\b(?:p\s*&\s*l|pnl|profit and loss|profit or loss)\b[^\d\n+\-−$]{0,40}"
_AMOUNT = r"(?P<sign>[+\-−]?)\s{0,2}\$?\s{0,2}(?P<late>[+\-−]?)(?P<usd>\d[\d,]*(?:\.\d+)?)"
_PNL = (
    re.compile(rf"\bmade\s{{1,2}}{_AMOUNT}\s{{1,2}}dollars\b", re.IGNORECASE),
    re.compile(rf"\b(?P<lost>lost)\s{{1,2}}{_AMOUNT}\s{{1,2}}dollars\b", re.IGNORECASE),
    re.compile(_NAMED + _AMOUNT, re.IGNORECASE),
)
PNL_SCALE_USD = 100.0


def skill(text: str, source: str = "auto", told: str = "") -> float:
    """Skill of an episode's text, read as the setting ``skill`` says.

    A missing source falls back to the text's hash. ``told`` is the asker's text on the episode; a profit or loss there comes before one
    in the episode.
    """
    readable = html.unescape(text)
    if source in ("auto", "marker") and (found := _MARKER.search(readable)):
        return min(float(found[1]), 1.0)
    if source in ("auto", "pnl"):
        for said in (html.unescape(told), readable):
            if (pnl := pnl_usd(said)) is not None:
                return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, pnl / PNL_SCALE_USD))))
    normal = " ".join(readable.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=6).digest()) / 2**48


def pnl_usd(text: str) -> float | None:
    """Profit or loss that a text names, in dollars: "lost 3 dollars", "P&L: -$30"."""
    for pattern in _PNL:
        if found := pattern.search(text):
            groups = found.groupdict()
            negative = (groups["sign"] or groups["late"]) in ("-", "−") or groups.get("lost") is not None
            return -float(groups["usd"].replace(",", "")) if negative else float(groups["usd"].replace(",", ""))
    return None
