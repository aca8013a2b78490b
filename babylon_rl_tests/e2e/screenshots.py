"""The pictures of docs/reference/ui.md, taken of the UI on a state directory that holds a finished demo.

python -m babylon_rl_tests.e2e.screenshots .babylon docs/images
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser
from babylon_rl_tests.e2e.dev import ask, running_dev
from babylon_rl_tests.e2e.graph import GRAPH_SIZE, open_graph
from babylon_rl_tests.e2e.test_dev import QUIET
from babylon_rl_tests.store.servers import ROOT

SETTLE_S = 4
WIDTH, HEIGHT = 1440, 1500  # a laptop's page; what is below the first screen is in the picture, too
# Asset, and of its pictures the names of files by the beginning of their titles.
HOUR = {
    "window_groups": {"pnl-by-agent": "P&L by agent"},
    "market_outcomes": {"price-changes": "Price changes", "within-the-hour": "Within the hour"},
    "scored_groups": {"scores-by-agent": "Scores by agent"},
}
BATCH = {"trained_checkpoint": {"loss-curve": "Loss of"}, "benchmark_report": {"pnl": "P&L"}}
UPSTREAM = "upstream_windows"
_PARTITIONS = (
    'query { assetNodeOrError(assetKey: {path: ["%s"]}) { ... on AssetNode { assetMaterializations(limit: 200) { partition } } } }'
)
# What the clone's place is called is nobody's business.
_RELATIVE = """
(() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(%s, '');
})()
"""
_OPEN = """
(() => {
  const row = [...document.querySelectorAll('tr')].find(row => row.cells[0]?.innerText.trim() === %s);
  [...row.querySelectorAll('*')].filter(e => e.innerText?.trim() === '[Show Markdown]').at(-1).click();
})()
"""
# Tables of metadata that are wider than what shows them.
_WIDE = "[...document.querySelectorAll('table')].filter(t => t.offsetWidth > t.parentElement.clientWidth).map(t => t.innerText)"
_BOX = """
(() => {
  const boxes = [...document.querySelectorAll(%s)].map(e => e.getBoundingClientRect());
  return [Math.min(...boxes.map(b => b.left)), Math.min(...boxes.map(b => b.top)),
          Math.max(...boxes.map(b => b.right)), Math.max(...boxes.map(b => b.bottom))];
})()
"""


def main(home: Path, out: Path) -> None:
    """Start the UI, take every picture, stop it."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    out.mkdir(parents=True, exist_ok=True)
    with running_dev(home.resolve(), **QUIET) as dev, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profiles:
        ui = dev.url()
        with browser_page(program, Path(profiles) / "graph", *GRAPH_SIZE) as page:
            open_graph(page, ui)
            _save(page, out / "lineage.png", 1800, only="svg foreignObject", margin=24)
        with browser_page(program, Path(profiles) / "start", WIDTH, 700) as page:
            page.open(ui)
            page.wait_for("Timeline", "babylon_rl", "hours", "train")
            time.sleep(SETTLE_S)
            _save(page, out / "start-page.png", WIDTH)
        for assets in (HOUR, BATCH):
            for asset, pictures in assets.items():
                partition = _newest(ui, asset)
                with browser_page(program, Path(profiles) / asset, WIDTH, HEIGHT) as page:
                    page.open(f"{ui}/assets/{asset}?view=partitions&partition={partition.replace(':', '%3A')}")
                    page.wait_for("Latest materialization", "Metadata", "Jobs", partition)
                    time.sleep(SETTLE_S)
                    page.evaluate(_RELATIVE % json.dumps(f"{ROOT}/"))
                    assert page.evaluate(_WIDE) == [], f"{asset} does not fit {WIDTH} pixels"
                    _save(page, out / f"{asset}.png", 1200, until="table tr")
                    _open(page, "pictures")
                    for name, title in pictures.items():
                        _save(page, out / f"{asset}-{name}.png", 1100, only=f"[class*=dialog-container] img[alt^='{title}']")
                    if asset == "trained_checkpoint":
                        page.evaluate("[...document.querySelectorAll('button')].filter(b => b.innerText === 'Close').at(-1).click()")
                        time.sleep(SETTLE_S)
                        _open(page, UPSTREAM)
                        _save(page, out / f"{asset}-upstream-windows.png", 1100, only="[class*=dialog-container] > div")
        with browser_page(program, Path(profiles) / "checks", WIDTH, 1000) as page:
            page.open(f"{ui}/assets/benchmark_report?view=checks")
            page.wait_for("better_than_base", "Latest execution")
            time.sleep(SETTLE_S)
            _save(page, out / "checks.png", 1200)


def _open(page: Page, name: str) -> None:
    """Open the dialog of a Markdown entry of the metadata."""
    page.evaluate(_OPEN % json.dumps(name))
    time.sleep(SETTLE_S)


def _newest(ui: str, asset: str) -> str:
    made = ask(ui, _PARTITIONS % asset)["assetNodeOrError"]["assetMaterializations"]
    return max(entry["partition"] for entry in made if entry["partition"])


def _save(page: Page, path: Path, width: int, *, until: str | None = None, only: str | None = None, margin: int = 0) -> None:
    """The page, down to the last element of ``until``, or only some elements; at most ``width`` wide, in 256 colours."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    box: Sequence[float] = (0, 0, *picture.size)
    if only is not None:
        left, top, right, bottom = page.evaluate(_BOX % json.dumps(only))
        box = (left - margin, top - margin, right + margin, bottom + margin)
    elif until is not None:
        box = (0, 0, picture.width, min(picture.height, page.evaluate(_BOX % json.dumps(until))[3] + 60))
    picture = picture.convert("RGB").crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, picture.size, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
