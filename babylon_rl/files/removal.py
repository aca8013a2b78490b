"""Removal of files that are not needed any more.

What the disk refuses is returned in words, never swallowed.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Removal:
    """Number and bytes of removed files, and a sentence for each refused path.

    In a dry run: of files to be removed.
    """

    dry_run: bool = False
    files: int = 0
    bytes: int = 0
    refused: list[str] = field(default_factory=list)

    def file(self, path: Path) -> None:
        """Remove one file; one that is gone meanwhile counts for nothing."""
        try:
            size = path.lstat().st_size
            if not self.dry_run:
                path.unlink()
        except FileNotFoundError:
            return
        except OSError as refusal:
            self.refuse(path, refusal)
            return
        self.files += 1
        self.bytes += size

    def directory(self, path: Path) -> None:
        """Remove one directory if it is empty; a full one stays without a word."""
        try:
            if not self.dry_run and not any(path.iterdir()):
                path.rmdir()
        except FileNotFoundError:
            return
        except OSError as refusal:
            self.refuse(path, refusal)

    def tree(self, directory: Path) -> None:
        """Remove a directory with its content; links are removed, not their targets."""
        for path in _deepest_first(directory):
            if path.is_dir() and not path.is_symlink():
                self.directory(path)
            else:
                self.file(path)

    def unused(self, directory: Path, before: float) -> None:
        """Remove files below ``directory`` unused since ``before`` (Unix seconds), then empty directories.

        Regular files only; unused means neither read nor written.

        Sockets and pipes stay: they belong to processes.
        """
        for path in _deepest_first(directory):
            try:
                facts = path.lstat()
            except FileNotFoundError:
                continue
            if path == directory or max(facts.st_atime if stat.S_ISREG(facts.st_mode) else 0, facts.st_mtime) >= before:
                continue
            if stat.S_ISDIR(facts.st_mode):
                self.directory(path)
            elif stat.S_ISREG(facts.st_mode):
                self.file(path)

    def refuse(self, path: Path, refusal: OSError) -> None:
        """Note a path that cannot be removed."""
        self.refused.append(f"{path} cannot be removed: {refusal.strerror or refusal}.")


def _deepest_first(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory, topdown=False):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in [*files, *links])
        yield Path(folder)
