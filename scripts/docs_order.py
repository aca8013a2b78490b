"""Order of the sections of the docs site, as a hook of mkdocs; pages within a section stand in the order of the alphabet."""

from pathlib import PurePosixPath

from mkdocs.structure.files import Files

SECTIONS = ("tutorial", "howto", "reference", "explanation", "evidence", "decisions")


def on_files(files: Files, **_: object) -> Files:
    """``files`` with pages of the folders in the order of ``SECTIONS``, after the front page."""

    def place(uri: str) -> tuple[int, str]:
        folder = PurePosixPath(uri).parts[0]
        return SECTIONS.index(folder) if folder in SECTIONS else -1, uri

    return Files(sorted(files, key=lambda file: place(file.src_uri)))
