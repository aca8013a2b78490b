"""The demo's output in README.md: every line is printed for the kept run, and its scripts earn the same today."""

import json
import re

import pytest

from babylon_rl.cli.demo import _parts
from babylon_rl.cli.output import emit
from babylon_rl.evaluation.gate import GateRow
from babylon_rl.evaluation.play import script_rows
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl_tests.store.servers import ROOT
from benchmarks.demo import KEPT

FIRST_LINE = "The same unseen markets"


def test_every_line_of_the_page_is_printed_for_the_kept_run(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(KEPT.read_text())
    emit(document, _parts(document), as_json=False)
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (shown,) = (block for block in blocks if block.startswith(FIRST_LINE))
    assert len(re.findall(r"\d+", shown)) > 30
    assert [line for line in shown.splitlines() if line != "..." and line.rstrip() not in printed] == []


def test_scripts_earn_in_the_same_markets_as_in_the_kept_run() -> None:
    kept = {row["model"]: row for row in json.loads(KEPT.read_text())["rows"]}
    for name, (role, results) in script_rows(benchmark_snapshots(kept["base"]["markets"])).items():
        played = GateRow(name, role, {(result.snapshot, name, 0): result for result in results}).document
        measured = [key for key in played if not key.startswith("improvement")]
        assert {key: played[key] for key in measured} == pytest.approx({key: kept[name][key] for key in measured}), name
