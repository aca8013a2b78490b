"""HTML and SVG put together so that what is not markup cannot become it: whatever is no `Html` is escaped."""

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
