"""The picture of the benchmark report in docs: scripted agents in markets made on the spot, as a browser shows their report.

python -m babylon_rl_tests.e2e.report_picture docs/images
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from babylon_rl.evaluation.html_report import write_report
from babylon_rl.evaluation.play import benchmark_results, scripted
from babylon_rl.evaluation.snapshots import snapshots_named
from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser

AGENTS = ("oracle", "news-reader", "balanced", "conservative", "random", "nothing")
MARKETS = "preset:quick:seeds=1-24"
OPEN = "document.querySelectorAll('details')[%d].open = true"
BOX = "JSON.stringify(document.querySelectorAll('details')[%d].getBoundingClientRect().top + scrollY)"


def report(directory: Path, agents: tuple[str, ...] = AGENTS, markets: str = MARKETS) -> Path:
    """The page of a benchmark of scripted agents."""
    played = snapshots_named([markets])
    runs = benchmark_results([scripted(name) for name in agents], played, directory / "results")
    return write_report(runs.results, directory / "report", {market.digest: market.scenario for market in played})[0]


def show(page: Page, path: Path, width: int, scheme: str = "light") -> None:
    """Open the page as a screen of that width shows it."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.open(path.resolve().as_uri())
    page.wait_for("How to read this")


def main(out: Path) -> None:
    """Write benchmark-report.png: the top of the page, and below it the beginning of one run."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        path = report(Path(scratch))
        with browser_page(program, Path(scratch) / "profile", 1200, 900) as page:
            show(page, path, 1200)
            chosen = 3 * sorted(AGENTS).index("news-reader")
            page.evaluate(OPEN % chosen)
            top = _part(page, 0, 850)
            run = _part(page, int(float(page.evaluate(BOX % chosen))) - 10, 480)
    picture = Image.new("RGB", (1200, top.height + run.height), "white")
    picture.paste(top, (0, 0))
    picture.paste(run, (0, top.height))
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(out / "benchmark-report.png", optimize=True)


def _part(page: Page, y: int, height: int) -> Image.Image:
    clip = {"x": 0, "y": y, "width": 1200, "height": height, "scale": 1}
    taken = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
