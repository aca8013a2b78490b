"""HTML pages from jinja2 templates: one file each, that needs nothing else and runs nothing.

Every value in a template is escaped. Characters that no HTML may hold, or that turn the reading direction around, are replaced. Charts are
inline SVG (templates/charts.html.j2) in the colours of the page's style: they follow light and dark, which matplotlib's SVG cannot.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from babylon_rl.reporting.charts import Scale, line_points, pixels, scatter_offset, thinned
from babylon_rl.reporting.numbers import DASH, MINUS, dollars, moment, number, percent, shortened, ticks_of

TEMPLATES = Path(__file__).with_name("templates")
_DIRECTIONS = frozenset({*range(0x202A, 0x202F), *range(0x2066, 0x206A)})


def render(template: Path, **values: Any) -> str:
    """Render a template with the charts, style and number formats of this room."""
    return _environment(template.parent).get_template(template.name).render(values)


@lru_cache
def _environment(directory: Path) -> Environment:
    """The environment of a directory's templates, which it compiles once."""
    environment = Environment(
        loader=FileSystemLoader([directory, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shortened=shortened, pixels=pixels)
    environment.globals.update(
        dollars=dollars, percent=percent, number=number, moment=moment, ticks_of=ticks_of, DASH=DASH, MINUS=MINUS,
        Scale=Scale, line_points=line_points, scatter_offset=scatter_offset, thinned=thinned,
        style=Markup((TEMPLATES / "style.css").read_text("utf-8")),
    )  # fmt: skip
    return environment


def _clean(value: Any) -> Any:
    """A value without forbidden characters; None becomes nothing."""
    if value is None or isinstance(value, Markup):
        return "" if value is None else value
    return "".join("\N{REPLACEMENT CHARACTER}" if _forbidden(ord(character)) else character for character in str(value))


def _forbidden(code: int) -> bool:
    # controls, lone surrogates, marks of direction, and the two non-characters at the end of every plane
    return (
        (code < 32 and code not in (9, 10, 13))
        or 127 <= code < 160
        or 0xD800 <= code < 0xE000
        or code in _DIRECTIONS
        or (code >= 0xFFFE and code & 0xFFFE == 0xFFFE)
    )
