"""Backup, restore and move of a database with its checkpoints and state.

The file is a ZIP of ``database.sql``, files of the state directory, and ``backup.json``, the manifest with the hash of each, without what
can be made again: weights of bases, caches, logs, and batches that are being trained, which begin their iteration again.

The database is one snapshot. The gateway's spool is read before it, so that each call is in one of the two, and checkpoints, which never
change, after it. A restore checks every byte before it changes anything, then brings the files back, and last the database, in one
transaction: until then the same command goes on with what is missing.
"""

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

import msgspec

from babylon_rl import __version__
from babylon_rl.errors import BackupError, CheckpointError, UsageError, first_clause
from babylon_rl.files.durable import fsync, new_file, publish_directory, sha256, write_atomically
from babylon_rl.models.checkpoints import MANIFEST, verify
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import DatabaseSettings
from babylon_rl.store.connection import libpq_url
from babylon_rl.store.copying import Contents, fill, refuse_unless_empty, snapshot
from babylon_rl.store.database import Database, newer_version, open_database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import read_migrations
from babylon_rl.training.publishing import IMPORTING

FORMAT = 1
LISTING = "backup.json"
DUMP = "database.sql"
CHECKPOINTS = "checkpoints"
# Of the state directory.
STATE = (
    "benchmarks/**/*", "benchmark-results/**/*", "demo.env", "demo-stages.jsonl", "gateway/*", "gateway/spool/*.calls", "plots/**/*",
    "wandb/offline-run-*/**/*",
)  # fmt: skip
_PLACES = {CHECKPOINTS, *(pattern.partition("/")[0] for pattern in STATE)}
_BLOCK = 1024 * 1024


class BackupManifest(msgspec.Struct, rename="camel"):
    """Content of a backup. ``files``: SHA-256 by name; ``tables``: rows and hash by name."""

    made_at: str
    migrations: list[str]
    tables: dict[str, str]
    versions: list[str]
    left_out: list[str]
    files: dict[str, str]
    package: str = __version__
    format: int = FORMAT


def backup(settings: DatabaseSettings, file: Path, now: datetime, tell: Progress = no_progress) -> BackupManifest:
    """Write a new file with the database, its checkpoints and the state directory, and read it back.

    Raises:
        UsageError: the file is there already.
        DatabaseError: the database cannot be read or dumped.
        BackupError: what was written is not what is read back.
        OSError: a file cannot be read, or the new one not written; then there is none.
    """
    if file.exists():
        raise UsageError(f"{file} is there already, and a backup is never replaced. Choose another name.")
    # Listed before there is a new file, which may lie among them.
    state = sorted(path for pattern in STATE for path in settings.home.glob(pattern) if path.is_file())
    with open_database(settings, prepare=False) as database, new_file(file, private=True) as part, zipfile.ZipFile(part, "w") as archive:
        files = _Writer(archive)
        for path in state:
            with suppress(FileNotFoundError):  # calls that were written into the database meanwhile
                files.add_file(path, path.relative_to(settings.home).as_posix())
        with snapshot(database) as taken:
            tables, migrations, checkpoints = taken.contents(tell), taken.migrations(), taken.checkpoints()
            files.add(DUMP, taken.script())
        versions, left_out = [], []
        for number, one in enumerate(checkpoints):
            tell(CHECKPOINTS, number, len(checkpoints))
            own = settings.home / CHECKPOINTS / one.version
            # A row names the place on the machine that trained it.
            directory = Path(one.directory) if Path(one.directory).is_dir() else own
            why_not = _why_not(directory, one.manifest_sha)
            if why_not is not None:
                left_out.append(f"{one.version}: {why_not}")
                continue
            for path in sorted(path for path in directory.rglob("*") if path.is_file()):
                files.add_file(path, f"{CHECKPOINTS}/{one.version}/{path.relative_to(directory).as_posix()}")
            versions.append(one.version)
        if checkpoints:
            tell(CHECKPOINTS, len(checkpoints), len(checkpoints))
        made_at = now.isoformat(timespec="seconds") + "Z"
        manifest = BackupManifest(made_at, migrations, dict(tables), versions, left_out, files.hashes)
        files.add(LISTING, [msgspec.json.format(msgspec.json.encode(manifest), indent=1)])
    fsync(file.absolute().parent)
    with _opened(file) as archive:
        return _checked(archive, file, tell)


def restore(settings: DatabaseSettings, file: Path, tell: Progress = no_progress) -> BackupManifest:
    """Bring a backup back into an empty database and the state directory.

    Raises:
        BackupError: the file is no whole backup.
        SchemaMismatch: a newer version of the package made it.
        UsageError: the database is not empty, or another file is in the place of one.
        DatabaseError: the database refuses; it stays empty.
    """
    home = settings.home
    with _opened(file) as archive:
        manifest = _checked(archive, file, tell)
        newer = sorted(set(manifest.migrations) - {migration.name for migration in read_migrations()})
        if newer:
            raise newer_version(str(file), newer[0])
        missing = _missing(home, manifest)
        with open_database(settings, prepare=False) as database:
            refuse_unless_empty(database)
            for version in manifest.versions:
                names = [name for name in missing if name.startswith(f"{CHECKPOINTS}/{version}/")]
                if names:
                    _restore_checkpoint(archive, names, home / CHECKPOINTS / version)
            for name in missing:
                if not name.startswith(f"{CHECKPOINTS}/"):
                    (home / name).parent.mkdir(parents=True, exist_ok=True)
                    private = (archive.getinfo(name).external_attr >> 16) & 0o077 == 0
                    write_atomically(home / name, _blocks(archive, name), private=private)
            fill(database, _blocks(archive, DUMP), manifest.tables)
    return manifest


def move_to(settings: DatabaseSettings, url: str, tell: Progress = no_progress) -> Contents:
    """Copy the embedded database into the empty one at ``url``; the embedded one stays as it is.

    Returns the tables, which were compared.

    Raises:
        UsageError: DATABASE_URL is set, others use the embedded database, or the other one is not empty.
        SettingsError: ``url`` is no address.
        DatabaseError: one of the two cannot be used; the one at ``url`` stays empty.
    """
    if not settings.uses_embedded_database:
        raise UsageError("DATABASE_URL is set: the database is on a server of your own already. Unset it to move the embedded one.")
    address = libpq_url(url, "URL")
    target = Database(address, address)
    refuse_unless_empty(target)
    with use_server(settings.home, alone=True) as own, snapshot(Database(own, own)) as taken:
        contents = taken.contents(tell)
        fill(target, taken.script(), contents)
    return contents


@dataclass
class _Writer:
    """Members of an archive, each with its hash."""

    archive: zipfile.ZipFile
    hashes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, blocks: Iterable[bytes], mode: int = 0o600) -> None:
        member = zipfile.ZipInfo(name)
        member.compress_type, member.external_attr = _packing(name), mode << 16
        digest = hashlib.sha256()
        with self.archive.open(member, "w", force_zip64=True) as out:
            for block in blocks:
                digest.update(block)
                out.write(block)
        self.hashes[name] = digest.hexdigest()

    def add_file(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            self.add(name, iter(lambda: file.read(_BLOCK), b""), mode=os.fstat(file.fileno()).st_mode & 0o777)


def _why_not(directory: Path, manifest_sha: str) -> str | None:
    """Reason why a checkpoint cannot be taken along, None for a whole one."""
    if not directory.is_dir():
        return "its files are not on this machine"
    try:
        verify(directory)
    except CheckpointError as damaged:
        return first_clause(damaged)
    return None if sha256(directory / MANIFEST) == manifest_sha else f"{directory} holds another checkpoint than the registered one"


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as damaged:
        raise _damaged(file, first_clause(damaged)) from None


def _checked(archive: zipfile.ZipFile, file: Path, tell: Progress) -> BackupManifest:
    """Read every member and compare its hash. Raises BackupError: one differs, or is none of a backup."""
    members = archive.infolist()
    # The script alone is packed, so that no other member is larger than the file.
    if any(one.flag_bits & 1 or one.compress_type not in (zipfile.ZIP_STORED, _packing(one.filename)) for one in members):
        raise _damaged(file, "a file in it is packed as no backup packs it")
    if sum(one.compress_size for one in members) > file.stat().st_size:
        raise _damaged(file, "its files lie over one another")
    try:
        manifest = msgspec.json.decode(archive.read(LISTING), type=BackupManifest)
    except (KeyError, RecursionError, msgspec.MsgspecError):
        raise BackupError(f"{file} is no backup of babylon-rl, or one of a newer version.") from None
    if manifest.format != FORMAT:
        raise BackupError(f"{file} has format {manifest.format}; this version of babylon_rl reads {FORMAT}. Update the code.")
    if sorted(archive.namelist()) != sorted([*manifest.files, LISTING]) or DUMP not in manifest.files:
        raise _damaged(file, "its files are not those that it lists")
    for number, (name, digest) in enumerate(manifest.files.items()):
        tell("files", number, len(manifest.files))
        # Against accidents alone: the script runs with the role's rights, and psql starts programs that it names.
        path = PurePosixPath(name)
        if name != DUMP and (not path.parts or path.parts[0] not in _PLACES or ".." in path.parts or str(path) != name):
            raise _damaged(file, f"{name or 'a file without a name'} belongs to no backup")
        found = hashlib.sha256()
        for block in _blocks(archive, name):
            found.update(block)
        if found.hexdigest() != digest:
            raise _damaged(file, f"{name} is not what was written")
    tell("files", len(manifest.files), len(manifest.files))
    return manifest


def _packing(name: str) -> int:
    return zipfile.ZIP_DEFLATED if name == DUMP else zipfile.ZIP_STORED


def _blocks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(name) as member:
        while block := member.read(_BLOCK):
            yield block


def _damaged(file: Path, reason: str) -> BackupError:
    return BackupError(f"{file} is damaged: {reason}. Nothing was changed. Copy it anew, or take an older backup.")


def _missing(home: Path, manifest: BackupManifest) -> list[str]:
    """Names of files that are not here. Raises UsageError: something else is in the place of one."""
    missing = []
    for name, digest in manifest.files.items():
        if name == DUMP:
            continue
        there = home / name
        place = home.joinpath(*PurePosixPath(name).parts[:2]) if name.startswith(f"{CHECKPOINTS}/") else there
        if there.is_file() and sha256(there) == digest:
            continue
        if place.exists():
            raise UsageError(
                f"{place} is there already, and not as in the backup. Nothing was changed. Move it away, or take another BABYLON_RL_HOME."
            )
        missing.append(name)
    return missing


def _restore_checkpoint(archive: zipfile.ZipFile, names: Sequence[str], final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=IMPORTING, dir=final.parent, ignore_cleanup_errors=True) as staged:
        for name in names:
            path = Path(staged).joinpath(*PurePosixPath(name).parts[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                out.writelines(_blocks(archive, name))
        publish_directory(Path(staged), final)
