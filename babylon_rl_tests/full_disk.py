"""A disk that takes no more, for the tests of what then becomes of files."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
