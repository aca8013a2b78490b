"""Order of the sections of the docs site, as a hook of mkdocs; pages within a section stand in the order of the alphabet."""

from typing import Any

SECTIONS = ("Tutorial", "Howto", "Reference", "Explanation", "Evidence", "Decisions")


def on_nav(nav: Any, **_: Any) -> Any:
    """``nav`` with its sections in the order of ``SECTIONS``, after the front page."""
    nav.items.sort(key=lambda item: SECTIONS.index(item.title) + 1 if item.title in SECTIONS else 0)
    for item in nav.items:
        item.title = "How-to" if item.title == "Howto" else item.title
    return nav
