"""The asset graph in a browser."""

import time

from babylon_rl_tests.e2e.browser import Page

GROUPS = ("game", "episodes", "market", "judge", "training", "evaluation", "serving")
LINEAGE = "/asset-groups?expanded=" + "%2C".join(f"global%40global%3A{group}" for group in GROUPS)
GRAPH_SIZE = 2900, 1900  # in which Dagster shows the whole graph with its counts
# Of what the graph still loads.
_LOADING = """
[...document.querySelectorAll('body *:not(script):not(style)')]
  .filter(e => !e.childElementCount && e.textContent.includes('Loading')).length
"""
# Boxes of the graph outside of its canvas, by their text.
_CUT = """
(() => {
  const boxes = [...document.querySelectorAll('svg foreignObject')];
  const canvas = boxes[0].closest('svg').parentElement.parentElement.getBoundingClientRect();
  return boxes.filter(e => {
    const box = e.getBoundingClientRect();
    return box.top < canvas.top || box.left < canvas.left || box.bottom > canvas.bottom || box.right > canvas.right;
  }).map(e => e.textContent);
})()
"""


def open_graph(page: Page, ui: str) -> None:
    """The whole asset graph with its counts and colours, nothing of it still loading."""
    page.open(ui + LINEAGE)
    page.wait_for("Hide navigation")
    page.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Hide navigation')).click()")
    time.sleep(1)
    page.open(ui + LINEAGE)
    page.wait_for("released_model", "Asset checks")
    deadline = time.monotonic() + 60
    while page.evaluate(_LOADING):
        assert time.monotonic() < deadline, "The graph is still loading."
        time.sleep(0.5)
    time.sleep(1)
    assert page.evaluate(_LOADING) == 0 and page.evaluate(_CUT) == []
