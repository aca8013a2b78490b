"""The S3 server of the tests: a process of its own that ends with the one that started it, however that ends."""

import subprocess
import sys

import psutil
import pytest

from babylon_rl_tests.cli.test_children import gone
from babylon_rl_tests.store.servers import ROOT

_TESTER = """
import sys
from babylon_rl_tests.object_store import running_store
with running_store() as store:
    print(store.files().ls(store.bucket().removesuffix("/models")), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_server_ends_with_its_tester(killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _TESTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tester:
        assert tester.stdout is not None and tester.stdin is not None and tester.stderr is not None
        assert tester.stdout.readline() == "[]\n", tester.stderr.read()
        (server,) = psutil.Process(tester.pid).children()
        if killed:
            tester.kill()
        else:
            tester.stdin.close()
        assert tester.wait(30) == (-9 if killed else 0), tester.stderr.read()
        assert gone(server.pid)
