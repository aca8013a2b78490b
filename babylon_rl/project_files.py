"""Files of the project other than Python: in a clone, or inside an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_file(name: str) -> Path:
    """Path of a file or directory of the project, such as ``migrations`` or ``dagster.yaml``."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def import_root() -> Path:
    """Directory that contains the package, for child processes of a parent that runs elsewhere."""
    return _PACKAGE.parent


def clone() -> Path | None:
    """Directory of the clone that this package runs from; None for an installed wheel."""
    return _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").exists() else None
