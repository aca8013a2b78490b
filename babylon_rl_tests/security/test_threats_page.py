"""The page of threats: each of its lines names a test that exists."""

import ast
import re

import pytest

from babylon_rl.serving.access import MOST_OPEN
from babylon_rl_tests.store.servers import ROOT

PAGE = ROOT / "docs" / "explanation" / "threats.md"
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_page_names_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "babylon_rl_tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_line_of_the_page_names_a_test_and_the_page_stays_short() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| what follows |" not in line]
    assert len(lines) == len(NAMED) >= 25
    assert len(PAGE.read_text().split()) <= 1100
    assert f"at most {MOST_OPEN} open calls" in PAGE.read_text()
