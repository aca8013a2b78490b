"""The pictures of docs/howto/admin-page.md, and how long the page takes until its first paint with 10,000 hours.

python -m babylon_rl_tests.e2e.admin_page_picture docs/images
"""

import base64
import io
import sys
import tempfile
from pathlib import Path
from statistics import median

from PIL import Image

from babylon_rl.settings import Settings
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser
from babylon_rl_tests.serving.admin_rows import fill
from babylon_rl_tests.serving.admin_server import running_admin

HOURS, LOOKS = 10_000, 9
# Picture: path (from its anchor on), width in CSS pixels, colour scheme, and the height that is kept.
PICTURES = {
    "admin-page": ("/admin", 1100, "light", 2520),
    "admin-page-dark": ("/admin", 1100, "dark", 1330),
    "admin-page-phone": ("/admin", 375, "light", 1500),
    "admin-page-phone-agents": ("/admin#agents", 375, "dark", 1500),
    "admin-page-agent": ("/admin/agent?id=agent-3", 1100, "light", 900),
}
_PAINT = """
new Promise(done => new PerformanceObserver(list => {
  const first = list.getEntriesByName('first-contentful-paint')[0];
  if (first) done(first.startTime);
}).observe({type: 'paint', buffered: true}))
"""


def opened(page: Page, url: str, width: int, scheme: str) -> None:
    """Open a page as a screen of that width shows it."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.open(url)
    page.wait_for("babylon_rl", inside="body:has(main section:last-child)")


def take(page: Page, url: str, file: Path, width: int, scheme: str, height: int) -> None:
    """Write a part of a page as a PNG of 200 colours, with the first of its folded parts open."""
    opened(page, url, width, scheme)
    page.evaluate("{ const first = document.querySelector('main details'); if (first) first.open = true }")
    top = page.evaluate("location.hash ? document.querySelector(location.hash).getBoundingClientRect().top + scrollY - 30 : 0")
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    taken = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")
    picture.quantize(200, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)
    print(file, picture.size, file.stat().st_size)


def main(out: Path) -> None:
    """Write every picture, then print the median time to the first paint."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        settings = Settings(_env_file=None, babylon_rl_home=Path(scratch) / "home", train_rl_local=True, local_base_model="dry")
        with open_database(settings) as database:
            migrate(database)
            fill(database, settings, HOURS, long_ids=True)
            with running_admin(settings, database) as server, browser_page(program, Path(scratch) / "profile", 1100, 900) as page:
                for name, (path, width, scheme, height) in PICTURES.items():
                    take(page, server.url + path, out / f"{name}.png", width, scheme, height)
                paints = []
                for _ in range(LOOKS):
                    opened(page, f"{server.url}/admin", 1100, "light")
                    paints.append(float(page.evaluate(_PAINT)))
                print(
                    f"first paint with {HOURS} hours: {median(paints):.0f} ms (median of {LOOKS}; {min(paints):.0f} to {max(paints):.0f})"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
