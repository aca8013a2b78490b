"""A real browser without a window: headless Chromium, driven over its DevTools protocol."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
LARGEST_MESSAGE = 64 * 2**20


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Page:
    """One open page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Go to a page, without waiting for it."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, *words: str, inside: str = "body", timeout_s: float = 60) -> str:
        """The text that a person reads inside elements (CSS selector), once it holds all of ``words``."""
        text = ""
        deadline = time.monotonic() + timeout_s
        while not all(word in text for word in words):
            assert time.monotonic() < deadline, f"{words} did not appear: {text[:2000]!r}"
            time.sleep(0.25)
            text = self.evaluate(f"[...document.querySelectorAll({json.dumps(inside)})].map(e => e.innerText ?? e.textContent).join(' ')")
        return text

    def screenshot(self) -> bytes:
        """What the page looks like now, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser_page(program: str, profile: Path, width: int = 1600, height: int = 1000, *flags: str) -> Iterator[Page]:
    """An empty page in a browser of its own, which ends with the block; ``profile`` is a new directory."""
    process, port = _start([program, *FLAGS, *flags, f"--window-size={width},{height}"], profile)
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"), timeout=10) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        with connect(address, max_size=LARGEST_MESSAGE, proxy=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            yield page
            page.call("Browser.close")
    finally:
        process.terminate()
        process.wait(20)


def _start(command: list[str], profile: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A browser and its DevTools port. One that does not open its port in a minute (seen on a busy machine) is ended, another started."""
    for attempt in range(3):
        own = profile / str(attempt)
        own.mkdir(parents=True)
        # its crash reports go beside the profile, not into the user's home
        environment = os.environ | {"XDG_CONFIG_HOME": str(own), "XDG_CACHE_HOME": str(own)}
        with (own / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [*command, f"--user-data-dir={own}", "about:blank"], env=environment,
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            lines = (own / "DevToolsActivePort").read_text().splitlines() if (own / "DevToolsActivePort").exists() else []
            if len(lines) == 2:
                return process, int(lines[0])
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    raise AssertionError(f"Chromium did not start: {(own / 'stderr').read_text(errors='replace')[-2000:]}")
