"""The benchmark report as a browser shows it, on a screen and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser
from babylon_rl_tests.e2e.report_picture import report, show

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no Chromium")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("report"), ("oracle", "random", "nothing"), "preset:quick:seeds=1-4")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    program = find_browser()
    assert program is not None
    with browser_page(program, tmp_path / "profile") as opened:
        yield opened


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_of_the_screen(page: Page, path: Path, width: int) -> None:
    show(page, path, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_light_and_dark_have_their_colours(page: Page, path: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        show(page, path, 1200, scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("getComputedStyle(document.querySelector('svg polyline')).stroke") != "none"
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


def test_the_summary_fits_the_first_screen(page: Page, path: Path) -> None:
    show(page, path, 1200)
    assert page.evaluate("document.querySelector('table.standings').getBoundingClientRect().bottom") < 900
