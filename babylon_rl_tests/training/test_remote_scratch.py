"""What openpipe-art writes lies in the state directory, and is gone with the process that wrote it, at the latest with the next one."""

import subprocess
import sys

import pytest

from babylon_rl.training.backends.serverless.service import ArtScratch

MAKE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from babylon_rl.training.backends.serverless.service import ArtScratch
(ArtScratch(Path(sys.argv[1])).path / "left").write_text("behind")
os.kill(os.getpid(), signal.SIGKILL)
"""


def art_directories(home):
    return list((home / "tmp").glob("art-*"))


def test_a_directory_is_gone_when_it_is_closed_and_others_stay(tmp_path):
    with ArtScratch(tmp_path) as one:
        with ArtScratch(tmp_path) as other:
            (other.path / "model").mkdir()
            assert sorted(art_directories(tmp_path)) == sorted([one.path, other.path])
        assert art_directories(tmp_path) == [one.path]
    assert art_directories(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    subprocess.run([sys.executable, "-c", MAKE_AND_DIE, str(tmp_path)], check=False)
    (left,) = art_directories(tmp_path)
    assert (left / "left").is_file()
    with ArtScratch(tmp_path) as scratch:
        assert art_directories(tmp_path) == [scratch.path]
