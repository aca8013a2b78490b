"""The pictures of docs/reference/ui.md, taken of the UI on a state directory that holds a finished demo.

python -m babylon_rl_tests.e2e.screenshots .babylon docs/images [FIRST_WINDOW]
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
from babylon_rl_tests.e2e.test_dev import LINEAGE, QUIET
from babylon_rl_tests.store.servers import ROOT

SETTLE_S = 4
# Asset, and of its page the pictures and texts that lie behind a link.
HOUR = {"window_groups": ["pnl_by_agent"], "market_outcomes": ["price_changes", "within_the_hour"], "scored_groups": ["scores_by_agent"]}
BATCH = {"trained_checkpoint": ["pictures", "upstream_windows"], "benchmark_report": ["pnl"]}
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
# The UI greets a new profile, now and then after its first page only.
_SKIP = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Skip')?.click()"
_OPEN = """
(() => {
  const row = [...document.querySelectorAll('tr')].find(row => row.cells[0]?.innerText.trim() === %s);
  [...row.querySelectorAll('*')].filter(e => e.innerText?.trim() === '[Show Markdown]').at(-1).click();
})()
"""
_BOX = """
(() => {
  const boxes = [...document.querySelectorAll(%s)].map(e => e.getBoundingClientRect());
  return [Math.min(...boxes.map(b => b.left)), Math.min(...boxes.map(b => b.top)),
          Math.max(...boxes.map(b => b.right)), Math.max(...boxes.map(b => b.bottom))];
})()
"""


def main(home: Path, out: Path, *first_window: str) -> None:
    """Start the UI, take every picture, stop it; with its first window the bars show how much of the game is made."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    out.mkdir(parents=True, exist_ok=True)
    settings = QUIET | dict(zip(("FIRST_WINDOW",), first_window, strict=False))
    with running_dev(home.resolve(), **settings) as dev, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profiles:
        ui = dev.url()
        with browser_page(program, Path(profiles) / "wide", 2500, 1500) as page:
            _skip_greeting(page, ui)
            page.open(ui + LINEAGE)
            page.wait_for("released_model")
            page.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Hide navigation')).click()")
            time.sleep(SETTLE_S)
            page.open(ui + LINEAGE)
            page.wait_for("released_model")
            page.evaluate("document.querySelector('[aria-label=\"Collapse sidebar\"], [class*=panel_show_right]')?.click()")
            time.sleep(SETTLE_S)
            _save(page, out / "lineage.png", 1800)
        for assets in (HOUR, BATCH):
            for asset, behind in assets.items():
                partition = _newest(ui, asset)
                with browser_page(program, Path(profiles) / asset, 1700, 1500) as page:
                    page.open(f"{ui}/assets/{asset}?view=partitions&partition={partition.replace(':', '%3A')}")
                    page.wait_for("Latest materialization", "Metadata", "Jobs", partition)
                    time.sleep(SETTLE_S)
                    page.evaluate(_SKIP)
                    page.evaluate(_RELATIVE % json.dumps(f"{ROOT}/"))
                    _save(page, out / f"{asset}.png", 1200, until="table tr")
                    for name in behind:
                        page.evaluate(_OPEN % json.dumps(name))
                        time.sleep(SETTLE_S)
                        _save(page, out / f"{asset}-{name.replace('_', '-')}.png", 1100, only="[class*=dialog-container] > div")
                        page.evaluate("[...document.querySelectorAll('button')].filter(b => b.innerText === 'Close').at(-1).click()")
                        time.sleep(SETTLE_S)


def _newest(ui: str, asset: str) -> str:
    made = ask(ui, _PARTITIONS % asset)["assetNodeOrError"]["assetMaterializations"]
    return max(entry["partition"] for entry in made if entry["partition"])


def _skip_greeting(page: Page, ui: str) -> None:
    page.open(ui)
    page.wait_for("Overview")
    time.sleep(SETTLE_S)
    page.evaluate(_SKIP)
    time.sleep(SETTLE_S)


def _save(page: Page, path: Path, width: int, *, until: str | None = None, only: str | None = None) -> None:
    """The page, down to the last element of ``until``, or only an element; at most ``width`` wide, in 256 colours."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    box: Sequence[float] = (0, 0, *picture.size)
    if only is not None:
        box = page.evaluate(_BOX % json.dumps(only))
    elif until is not None:
        box = (0, 0, picture.width, min(picture.height, page.evaluate(_BOX % json.dumps(until))[3] + 60))
    picture = picture.convert("RGB").crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, picture.size, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
