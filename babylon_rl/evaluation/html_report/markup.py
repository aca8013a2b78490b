"""HTML and SVG elements, every text escaped, and numbers as a person reads them.

Whatever is no `Html` is escaped. Dollars are without cents from ten on, with a real minus sign; a missing value is a dash.
"""

import math
from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "br", "hr", "col", "line", "rect", "circle", "path", "polyline", "polygon"})


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """``<name attributes>children</name>``.

    Args:
        children: markup where they are ``Html``, texts else; None is left out, lists and tuples are flattened.
        attributes: ``class_`` and ``for_`` lose their underscore, other underscores become hyphens; None and False leave one out.
    """
    told = "".join(
        f" {key}" if value is True else f' {key}="{escape(_cleaned(str(value)))}"'
        for key, value in ((_attribute(key), value) for key, value in attributes.items())
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{told}/>" if name not in ("meta", "br", "hr", "col") else f"<{name}{told}>")
    return Html(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """Children one after another, those that are no markup escaped."""
    return Html("".join(_child(child) for child in children))


def shortened(text: str, most: int) -> str:
    """A text of ``most`` characters at most, on one line; what is cut off is an ellipsis."""
    one_line = " ".join(text[: 4 * most].split())
    return one_line if len(one_line) <= most else f"{one_line[: most - 1]}…"


def _child(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return joined(child)
    return escape(_cleaned(str(child)))


def _cleaned(text: str) -> str:
    """Without what no HTML may hold (controls, lone surrogates), and without the characters that turn the reading direction around."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _forbidden(ord(character)) else character for character in text)


def _forbidden(code: int) -> bool:
    return (
        (code < 32 and code not in (9, 10, 13))
        or 127 <= code < 160
        or 0xD800 <= code < 0xE000
        or code in _DIRECTIONS
        or (code >= 0xFFFE and code & 0xFFFE == 0xFFFE)
    )


_DIRECTIONS = frozenset({*range(0x202A, 0x202F), *range(0x2066, 0x206A)})


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-") if key != "viewBox" else key


DASH = "–"
MINUS = "\N{MINUS SIGN}"


def dollars(usd: float | None, sign: bool = True) -> str:
    """``+$1,234``, ``−$5.20``; ``sign`` False leaves the plus out."""
    if usd is None or not math.isfinite(usd):
        return DASH
    amount = f"${abs(usd):,.0f}" if abs(usd) >= 9.995 else f"${abs(usd):,.2f}"
    if amount == "$0.00":
        return "$0"
    return f"{MINUS if usd < 0 else '+' if sign else ''}{amount}"


def percent(share: float | None, digits: int = 0, sign: bool = False) -> str:
    """A share (0.25) as ``25 %``."""
    if share is None or not math.isfinite(share):
        return DASH
    told = f"{abs(share):.{digits}%}".replace("%", " %")
    negative = share < 0 and any(digit in told for digit in "123456789")
    return f"{MINUS if negative else '+' if sign else ''}{told}"


def number(value: float | None, digits: int = 2) -> str:
    """``−1.25``."""
    if value is None or not math.isfinite(value):
        return DASH
    told = f"{abs(value):,.{digits}f}"
    return f"{MINUS if value < 0 and any(digit in told for digit in '123456789') else ''}{told}"


def moment(seconds: float) -> str:
    """Time since a market's start: ``0:05:00``, with days where there are any."""
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"day {days + 1}, {clock}" if days else clock


def duration(seconds: float) -> str:
    """``30 minutes``, ``7 days``."""
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:,.0f} {name}{'' if seconds == length else 's'}"
    return f"{seconds:,.0f} seconds"


def ticks_of(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, for an axis."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
