"""Order of the sections of the docs site, as a hook of mkdocs; pages within a section stand in the order of the alphabet."""

from pathlib import PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.utils import nest_paths

SECTIONS = ("tutorial", "howto", "reference", "explanation", "evidence", "decisions")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Set the navigation: the front page, then the folders in the order of ``SECTIONS``."""

    def place(uri: str) -> tuple[int, str]:
        folder = PurePosixPath(uri).parts[0]
        return SECTIONS.index(folder) if folder in SECTIONS else -1, uri

    config.nav = nest_paths(sorted((page.src_uri for page in files.documentation_pages()), key=place))
    return files
