"""A disk that takes no more, and a process that can open no more, for the tests of what then becomes of files."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def full_disk(bytes_free: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: what a write to a full disk meets.

    Modules that are imported meanwhile leave no bytecode: Python would keep the half that fits.
    """
    before, bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, before[1]))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = bytecode


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at an empty directory, for programs that are not ours.

    Skips the test where this process may not mount one.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "none", directory]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """This process can open no file and no connection."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
