"""A directory whose content cannot be removed by anybody, root included."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def unremovable(directory: Path) -> Iterator[None]:
    """Refuse every removal from ``directory``: by its mode, and for root, whom that does not stop, by its immutable flag."""
    if os.geteuid() != 0:
        directory.chmod(0o555)
    elif subprocess.run(["chattr", "+i", str(directory)], capture_output=True).returncode != 0:
        pytest.skip("root may remove everything here: this file system has no immutable flag")
    try:
        yield
    finally:
        if os.geteuid() != 0:
            directory.chmod(0o755)
        else:
            subprocess.run(["chattr", "-i", str(directory)], check=True)
