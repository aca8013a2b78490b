"""The pictures of docs/ui.md, taken of the UI on a state directory that holds a finished demo.

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
from babylon_rl_tests.e2e.test_dev import LINEAGE, QUIET

SETTLE_S = 2.5
# Asset, and of its page the pictures and texts that lie behind a link.
HOUR = {"window_groups": ["pnl_by_agent"], "market_outcomes": ["price_changes"], "scored_groups": ["scores_by_agent"]}
BATCH = {"trained_checkpoint": ["loss_curve", "upstream_windows"], "benchmark_report": ["pnl", "report"], "training_batch": []}
_PARTITIONS = (
    'query { assetNodeOrError(assetKey: {path: ["%s"]}) { ... on AssetNode { assetMaterializations(limit: 200) { partition } } } }'
)
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


def main(home: Path, out: Path) -> None:
    """Start the UI, take every picture, stop it."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    out.mkdir(parents=True, exist_ok=True)
    with running_dev(home.resolve(), **QUIET) as dev, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profiles:
        ui = dev.url()
        with browser_page(program, Path(profiles) / "wide", 2700, 960) as page:
            _skip_greeting(page, ui)
            page.open(ui + LINEAGE)
            page.wait_for("released_model")
            time.sleep(SETTLE_S)
            _save(page, out / "lineage.png", 1600)
        for assets in (HOUR, BATCH):
            for asset, behind in assets.items():
                partition = _newest(ui, asset)
                with browser_page(program, Path(profiles) / asset, 1500, 1500) as page:
                    page.open(f"{ui}/assets/{asset}?view=partitions&partition={partition.replace(':', '%3A')}")
                    page.wait_for("Latest materialization", "Metadata", partition)
                    time.sleep(SETTLE_S)
                    _save(page, out / f"{asset}.png", 1100, until="table tr")
                    for name in behind:
                        page.evaluate(_OPEN % json.dumps(name))
                        time.sleep(SETTLE_S)
                        _save(page, out / f"{asset}-{name.replace('_', '-')}.png", 800, only="[class*=dialog-container] > div")
                        page.evaluate("[...document.querySelectorAll('button')].filter(b => b.innerText === 'Close').at(-1).click()")
                        time.sleep(SETTLE_S)


def _newest(ui: str, asset: str) -> str:
    made = ask(ui, _PARTITIONS % asset)["assetNodeOrError"]["assetMaterializations"]
    return max(entry["partition"] for entry in made if entry["partition"])


def _skip_greeting(page: Page, ui: str) -> None:
    page.open(ui)
    page.wait_for("Overview")
    time.sleep(SETTLE_S)
    page.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Skip')?.click()")
    time.sleep(SETTLE_S)


def _save(page: Page, path: Path, width: int, *, until: str | None = None, only: str | None = None) -> None:
    """The page, down to the last element of ``until``, or only an element; at most ``width`` wide, in 128 colours."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    box: Sequence[float] = (0, 0, *picture.size)
    if only is not None:
        box = page.evaluate(_BOX % json.dumps(only))
    elif until is not None:
        box = (0, 0, picture.width, min(picture.height, page.evaluate(_BOX % json.dumps(until))[3] + 60))
    picture = picture.convert("RGB").crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, picture.size, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
