"""docs/howto/serve-market.md as it stands: its command serves, its curl lines play, its agent earns a result."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.evaluation.results import read_result
from babylon_rl_tests.store.servers import ROOT

PAGE = (ROOT / "docs" / "howto" / "serve-market.md").read_text()
BABYLON_RL = Path(sys.executable).with_name("babylon-rl")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands run."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(workplace: Path) -> Iterator[str]:
    """The address of the page's server, on a free port."""
    generate, serve = (line.removeprefix("babylon-rl ").split() for line in _block("") if line.startswith("babylon-rl "))
    subprocess.run([BABYLON_RL, *generate], cwd=workplace, check=True, capture_output=True)
    command = [BABYLON_RL, *(word if word != "8010" else "0" for word in serve)]
    with subprocess.Popen(command, cwd=workplace, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            found = re.search(r"http://[\d.]+:\d+", said)
            assert found is not None, said
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=20)


@pytest.mark.slow
def test_the_agent_of_the_page_plays_to_the_end(served: str, workplace: Path) -> None:
    (workplace / "agent.py").write_text("\n".join(_block("python")))
    done = subprocess.run([sys.executable, "agent.py", served], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (kept,) = (workplace / "results").glob("news-*.json")
    result = read_result(kept)
    assert done.stdout == f"{result.metrics.total_pnl:+.2f} $\n" and result.metrics.trades > 0
    assert (result.agent_id, result.complete, result.metrics.refused, result.metrics.invalid) == ("news-in-twenty-lines", True, {}, {})


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_curl_lines_of_the_page_work_as_they_are(served: str, workplace: Path) -> None:
    lines = [line.replace("localhost:8010", served).replace("curl -s ", "curl -sS --fail ") for line in _block("bash")]
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(["bash", "-c", script], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for said in ('"acted":false', '"type":"fill"', '"done":false', '"ticksProcessed":1', "the agent gave up"):
        assert said in done.stdout, said


def _block(language: str) -> list[str]:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].splitlines()
