"""Pictures of asset pages: a few kilobytes whatever is drawn, and names are drawn as they are."""

import base64
import io
import math

import pytest
from PIL import Image

from babylon_rl.assets.partitions import embedded
from babylon_rl.reporting.plots import LOSS, MOST_PATHS, Picture, bar_plot, draw_paths, new_figure, path_plot


def picture(drawn: Picture) -> Image.Image:
    """The PNG inside the markdown of an asset page."""
    text = embedded([drawn])["pictures"].value
    assert text is not None and text.startswith(f"![{drawn.title}]")
    png = base64.b64decode(text.partition("base64,")[2].rstrip(")"))
    assert len(png) < 30_000
    return Image.open(io.BytesIO(png))


def path(seed: int) -> list[tuple[float, float]]:
    return [(float(minute), math.sin(seed + minute / 9) * seed) for minute in range(61)]


def test_bars_grow_with_their_number_and_take_one_colour() -> None:
    few, many = ([(f"agent-{n}", float(n)) for n in range(count)] for count in (2, 30))
    assert picture(bar_plot("few", "dollars", few)).height < picture(bar_plot("many", "dollars", many)).height
    colours = picture(bar_plot("rejected", "rows", [("no_steps", 3)], colour=LOSS)).convert("RGB").getcolors()
    assert colours is not None and tuple(bytes.fromhex(LOSS[1:])) in {colour for _, colour in colours}


def test_a_panel_names_the_first_series_and_says_how_many_there_are() -> None:
    paths, axes = {f"TICKER{n} +1.0 %": path(n) for n in range(MOST_PATHS + 20)}, new_figure(6.4, 3.0, 72).add_subplot()
    draw_paths(axes, "percent", paths)
    assert axes.get_title(loc="left") == "percent; 8 of 80 named"
    draw_paths(axes, "percent", {"ONE": path(1)})
    assert axes.get_title(loc="left") == "percent"
    one, two = picture(path_plot("hour", {"percent": paths})), picture(path_plot("hour", {"percent": paths, "dollars": paths}))
    assert (one.width, one.height < two.height) == (two.width, True)


@pytest.mark.parametrize("name", ["$BTC and $ETH", r"$\frac{$", "a" * 200, "_^{}", ""])
def test_names_are_drawn_as_they_are(name: str) -> None:
    picture(bar_plot("hour", "dollars", [(name, 1.0)]))
    picture(path_plot("hour", {"percent": {name: [(0.0, 1.0), (60.0, 1.0)]}}))


def test_numbers_beyond_all_bounds_are_drawn() -> None:
    picture(bar_plot("hour", "dollars", [("a", 1e308), ("b", math.inf), ("c", -1e308)]))
    picture(path_plot("hour", {"percent": {"a": [(0.0, -1e308), (60.0, 1e308)]}}))
