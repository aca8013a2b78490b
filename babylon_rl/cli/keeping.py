"""Commands ``backup``, ``restore`` and ``move-to``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from babylon_rl import backup as backups
from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, say
from babylon_rl.settings import load_settings
from babylon_rl.store.connection import address
from babylon_rl.store.copying import Contents, rows_of
from babylon_rl.store.migrate import read_migrations
from babylon_rl.windows import utc_now

app = typer.Typer()


@app.command("backup")
def backup(file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")], as_json: JsonOption = False) -> None:
    """Write database, checkpoints and state into one file. It is read back and checked. Others may go on working meanwhile.

    The file holds secrets, such as the hashes of keys, and is readable by its owner alone.
    """
    with progress_of_parts() as tell:
        manifest = backups.backup(load_settings(), file, utc_now(), tell)
    say(*(f"Left out: {sentence}." for sentence in manifest.left_out))
    _emit(f"Wrote and read back {file}", [file], manifest.tables, manifest.versions, manifest.left_out, as_json)


@app.command("restore")
def restore(file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `backup` wrote.")], as_json: JsonOption = False) -> None:
    """Bring a backup back into an empty database. Every byte is checked before anything is changed.

    It may be stopped and repeated. Restore your own files only: the script in one is executed.
    """
    settings = load_settings()
    with progress_of_parts() as tell:
        manifest = backups.restore(settings, file, tell)
    if {migration.name for migration in read_migrations()} - set(manifest.migrations):
        say("An older version of babylon_rl made it: run `babylon-rl migrate`.")
    if not settings.uses_embedded_database:
        say("Roles and rights are not in a backup: run docs/howto/least-privilege.sql again.")
    files = [settings.home / name for name in manifest.files if name != backups.DUMP]
    _emit(f"Restored {file}", files, manifest.tables, manifest.versions, manifest.left_out, as_json)


@app.command("move-to")
def move(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of an empty database, postgresql://...")], as_json: JsonOption = False
) -> None:
    """Copy the embedded database to a server of your own. It is compared table by table.

    The embedded one stays until you remove it. A password may stand in the URL, or in PGPASSWORD or ~/.pgpass.
    """
    settings = load_settings()
    with progress_of_parts() as tell:
        tables = backups.move_to(settings, url, tell)
    say(
        f"Checkpoints and state stay in {settings.home}. Put into .env, with user, password and options as you gave them:\n"
        f"DATABASE_URL=postgresql://USER:PASSWORD@{address(url)}\n"
        f"Once all is well, remove the embedded database: {settings.home / 'postgres'}"
    )
    _emit("Copied and compared the database", [], tables, [], [], as_json)


def _emit(done: str, files: Sequence[Path], tables: Contents, versions: Sequence[str], left_out: Sequence[str], as_json: bool) -> None:
    rows = rows_of(tables)
    document = {
        "files": [str(file) for file in files], "verified": True, "tables": len(tables), "rows": rows, "versions": list(versions),
        "leftOut": list(left_out),
    }  # fmt: skip
    emit(document, [f"{done}: {len(tables)} tables with {rows} rows, {len(versions)} checkpoints."], as_json)
