"""Backups brought back: database, checkpoints, state; damaged files; kills; databases of older versions."""

import copy
import json
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.backup import CHECKPOINTS, DUMP, LISTING, backup, restore
from babylon_rl.errors import BackupError, SchemaMismatch, UsageError
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, verify
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate, read_migrations, read_tables
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.store.test_copying import contents, is_empty, of_version
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_upload import make_checkpoint

STATE = {"gateway/secret": b"key", "gateway/spool/0-1.calls": b"calls", "benchmarks/base/1.json": b"{}", "demo.env": b"A=1\n"}
MADE_AGAIN = {"cache/x": b"", "tmp/y": b"", "models/z": b"", "gateway/metrics-1/m.db": b"", "checkpoints/.work/batch-1/1/a": b""}


def at(settings: Settings, database: Database, home: Path | None = None) -> Settings:
    """These settings on a database, at home elsewhere."""
    return settings.model_copy(update={"database_url": SecretStr(database.url), "babylon_rl_home": home or settings.home})


def write(home: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)


def files_in(home: Path) -> dict[str, str]:
    return {path.relative_to(home).as_posix(): sha256(path) for path in home.rglob("*") if path.is_file()}


@pytest.fixture
def small(database: Database, settings: Settings) -> Settings:
    """Settings of a migrated database with a row, and of a state directory with state."""
    write(settings.home, STATE | MADE_AGAIN)
    (settings.home / "gateway" / "secret").chmod(0o600)
    with database.connect(autocommit=True) as connection:
        connection.execute("INSERT INTO babylon_rl.simulated_hours VALUES ('2025-10-29T14:00', 1, true, now())")
    return at(settings, database)


@pytest.fixture
def kept(small: Settings, tmp_path: Path) -> Path:
    """A backup of it."""
    backup(small, tmp_path / "kept.zip", NOW)
    return tmp_path / "kept.zip"


def test_state_comes_back_with_its_rights_and_what_can_be_made_again_stays_behind(
    small: Settings, kept: Path, empty_database: Database, tmp_path: Path
) -> None:
    new = at(small, empty_database, tmp_path / "new")
    restore(new, kept)
    assert files_in(new.home) == {name: sha256(small.home / name) for name in STATE}
    assert (new.home / "gateway" / "secret").stat().st_mode & 0o777 == 0o600


def test_a_backup_among_the_state_does_not_hold_itself(small: Settings) -> None:
    (small.home / "plots").mkdir()
    assert set(backup(small, small.home / "plots" / "kept.zip", NOW).files) == {*STATE, DUMP}


def register(database: Database, version: str, directory: Path) -> None:
    """A row of the registry's lineage, without the batch behind it."""
    columns = '"version", "baseModel", "backend", "batchId", "checkpointPath", "manifestSha", "windows", "metrics", "createdAt"'
    manifest_sha = sha256(directory / MANIFEST) if directory.exists() else "x"
    with database.connect(autocommit=True) as connection:
        connection.execute('ALTER TABLE babylon_rl.model_lineage DROP CONSTRAINT IF EXISTS "model_lineage_batchId_fkey"')
        connection.execute(
            f"INSERT INTO babylon_rl.model_lineage ({columns}) VALUES (%s, 'tiny', 'dry', %s, %s, %s, '{{}}', '{{}}', now())",
            [version, f"batch-{version}", str(directory), manifest_sha],
        )


def test_checkpoints_are_those_of_the_snapshot_whole_and_by_the_row(small: Settings, database: Database, tmp_path: Path) -> None:
    whole, damaged, later = (
        make_checkpoint(tmp_path / f"made-{number}", small.home / CHECKPOINTS / f"v1.0.{number}", step=number) for number in range(3)
    )
    register(database, "v1.0.0", whole)
    register(database, "v1.0.1", damaged)
    register(database, "v1.0.3", tmp_path / "nowhere")
    (damaged / WEIGHTS).write_bytes(b"cut")
    counted = 0

    def trained_meanwhile(what: str, done: int, total: int) -> None:
        nonlocal counted
        counted += what == "tables"
        if counted == 1:  # the snapshot is taken
            register(database, "v1.0.2", later)
            counted += 1

    made = backup(small, tmp_path / "kept.zip", NOW, trained_meanwhile)
    assert made.versions == ["v1.0.0"]
    assert [sentence.partition(":")[0] for sentence in made.left_out] == ["v1.0.1", "v1.0.3"]
    assert "is damaged: adapter_model.safetensors" in made.left_out[0]
    assert made.left_out[1] == "v1.0.3: its files are not on this machine"
    named = {name.split("/")[1] for name in made.files if name.startswith(f"{CHECKPOINTS}/")}
    assert named == {"v1.0.0"}


def test_a_checkpoint_that_is_there_already_is_kept_and_another_one_is_refused(
    small: Settings, database: Database, empty_database: Database, tmp_path: Path
) -> None:
    register(database, "v1.0.0", make_checkpoint(tmp_path / "made", small.home / CHECKPOINTS / "v1.0.0"))
    backup(small, tmp_path / "kept.zip", NOW)
    other = at(small, empty_database, tmp_path / "other")
    make_checkpoint(tmp_path / "another", other.home / CHECKPOINTS / "v1.0.0", step=2)
    with pytest.raises(UsageError, match=r"checkpoints/v1\.0\.0 is there already, and not as in the backup"):
        restore(other, tmp_path / "kept.zip")
    same = at(small, empty_database)  # the database alone was lost
    restore(same, tmp_path / "kept.zip")
    assert verify(same.home / CHECKPOINTS / "v1.0.0").step == 1


def test_a_backup_is_never_replaced_and_a_failed_one_leaves_nothing(small: Settings, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kept\.zip is there already"):
        backup(small, kept, NOW)
    (small.home / "gateway" / "spool" / "1.calls").symlink_to("/proc/self/mem")
    with pytest.raises(OSError):
        backup(small, tmp_path / "failed.zip", NOW)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kept.zip"]


def test_a_restore_changes_nothing_where_something_else_is(
    small: Settings, kept: Path, database: Database, empty_database: Database, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not empty: it holds babylon_rl"):
        restore(at(small, database, tmp_path / "new"), kept)
    assert not (tmp_path / "new").exists()
    write(tmp_path / "other", {"gateway/secret": b"another"})
    with pytest.raises(UsageError, match="gateway/secret is there already, and not as in the backup. Nothing was changed"):
        restore(at(small, empty_database, tmp_path / "other"), kept)
    assert files_in(tmp_path / "other").keys() == {"gateway/secret"}
    assert is_empty(empty_database)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"calls")] ^= 1
    path.write_bytes(content)


def rewritten(path: Path, change: Callable[[dict], None], more: dict[str, bytes] | None = None) -> None:
    """The file with another manifest."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | (more or {})
    document = json.loads(members[LISTING])
    change(document)
    members[LISTING] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def naming(name: str) -> Callable[[Path], None]:
    """A change of a backup: a file of this name, which is listed."""

    def change(path: Path) -> None:
        rewritten(path, lambda document: document["files"].update({name: sha256(path)}), {name: path.read_bytes()})

    return change


def spoiled(path: Path) -> None:
    """Bytes of the packed script changed."""
    with zipfile.ZipFile(path) as archive:
        script = archive.getinfo(DUMP)
    content = bytearray(path.read_bytes())
    content[script.header_offset + 200 : script.header_offset + 260] = b"\xff" * 60
    path.write_bytes(content)


def member(name: str, content: bytes, **attributes: int) -> Callable[[Path], None]:
    """A change of a backup: one more member, whatever is there and listed already."""

    def change(path: Path) -> None:
        made = zipfile.ZipInfo(name)
        for attribute, value in attributes.items():
            setattr(made, attribute, value)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
            archive.writestr(made, content)

    return change


def marked(path: Path, place: int, value: int) -> None:
    """A byte of the first entry of the list of members changed: 8 says whether it is encrypted, 10 how it is packed."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + place] = value
    path.write_bytes(content)


def nested(path: Path) -> None:
    """A listing with a list in a list, a hundred thousand times."""
    rewritten(path, lambda document: document.update(more="here"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[LISTING] = members[LISTING].replace(b'"here"', b"[" * 100_000)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def overlapping(path: Path) -> None:
    """A thousand members that are one and the same bytes."""
    rewritten(path, lambda document: document.update(tables={"x": "0" * 10_000}))
    with zipfile.ZipFile(path, "a") as archive:
        listing = archive.getinfo(LISTING)
        for number in range(1000):
            again = copy.copy(listing)
            again.filename = f"gateway/{number}"
            archive.filelist.append(again)
        archive.writestr("gateway/last", b"")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "kept.zip is damaged: "),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "kept.zip is damaged: "),
        (lambda path: path.write_bytes(b"no archive"), "kept.zip is damaged: File is not a zip file. Nothing was changed"),
        (spoiled, "kept.zip is damaged: "),
        *(
            (naming(name), f"{re.escape(name) or 'a file without a name'} belongs to no backup")
            for name in (
                "gateway/../../escaped",
                "",
                ".",
                "/etc/x",
                "gateway//x",
                "gateway/./x",
                "gateway/",
                "C:/x",
                "C:x",
                "..",
                "gatewayx/y",
            )
        ),
        (member("demo.env", b"A=2"), "its files are not those that it lists"),
        (member("gateway/link", b"/etc/passwd", external_attr=0o120777 << 16), "its files are not those that it lists"),
        (member("gateway/bomb", bytes(10**8), compress_type=zipfile.ZIP_DEFLATED), "is packed as no backup packs it"),
        (lambda path: marked(path, 8, 1), "is packed as no backup packs it"),
        (lambda path: marked(path, 10, 99), "is packed as no backup packs it"),
        (overlapping, "lie over one another"),
        (nested, "is no backup of babylon-rl"),
        (lambda path: rewritten(path, lambda document: document["files"].pop("demo.env")), "its files are not those that it lists"),
        (lambda path: rewritten(path, lambda document: document["files"].update({DUMP: "0"})), "database.sql is not what was written"),
        (lambda path: rewritten(path, lambda document: document.update(format=2)), "has format 2; this version of babylon_rl reads 1"),
        (lambda path: rewritten(path, lambda document: document.clear()), "is no backup of babylon-rl"),
    ],
)
def test_a_damaged_file_is_refused_before_anything_is_changed(
    small: Settings, kept: Path, empty_database: Database, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(kept)
    with pytest.raises(BackupError, match=said):
        restore(at(small, empty_database, tmp_path / "new"), kept)
    assert not (tmp_path / "new").exists() and is_empty(empty_database)


def test_a_backup_of_a_newer_version_is_refused(small: Settings, database: Database, empty_database: Database, tmp_path: Path) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute("INSERT INTO babylon_rl.migrations VALUES ('9999_future', 'x', '2030-01-01')")
    backup(small, tmp_path / "newer.zip", NOW)
    with pytest.raises(SchemaMismatch, match=r"newer\.zip holds migration 9999_future, which this version.*Update the code"):
        restore(at(small, empty_database, tmp_path / "new"), tmp_path / "newer.zip")
    assert is_empty(empty_database)


# Forks a backup or a restore for each target: the first counts its lines in the three files, the others kill themselves at lines spread
# over these.
_KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from babylon_rl.backup import backup, restore
from babylon_rl.settings import Settings
action, targets, total, traced = sys.argv[1], sys.argv[2:], 0, ("/backup.py", "/copying.py", "/durable.py")
for number, target in enumerate(targets):
    file, url, home = target.split("|")
    reader, writer = os.pipe()
    if os.fork() == 0:
        passed, point = 0, total * number // (len(targets) - 1) - 1
        def line(frame, event, argument):
            global passed
            passed += event == "line"
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return line
        sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename.endswith(traced) else None)
        settings = Settings(_env_file=None, database_url=url, babylon_rl_home=home)
        restore(settings, Path(file)) if action == "restore" else backup(settings, Path(file), datetime(2025, 10, 30))
        os.write(writer, str(passed).encode())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    total = total or int(os.read(reader, 20))
"""


def killed(action: str, targets: Iterable[tuple[Path, Database, Path]]) -> None:
    """Run an action on (file, database, state directory) of each target, and kill all but the first one at lines spread over it."""
    command = [sys.executable, "-c", _KILLED, action, *(f"{file}|{database.url}|{home}" for file, database, home in targets)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", *["-9"] * (len(command) - 5)], done.stderr


def wait_until_alone(database: Database) -> None:
    """Until the programs that lost their parent have noticed the end of their input, and left."""
    with database.connect(autocommit=True) as connection:
        while connection.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 1:
            pass


@pytest.mark.slow
def test_a_backup_that_is_killed_at_any_line_leaves_no_half_file_of_its_name_and_the_next_one_is_whole(
    small: Settings, database: Database, copy_of: Callable[[str], Database], tmp_path: Path
) -> None:
    register(database, "v1.0.0", make_checkpoint(tmp_path / "made", small.home / CHECKPOINTS / "v1.0.0"))
    before, state = contents(database), files_in(small.home)
    kept = [tmp_path / f"kept-{number}.zip" for number in range(9)]
    killed("backup", [(file, database, small.home) for file in kept])
    wait_until_alone(database)
    assert (contents(database), files_in(small.home)) == (before, state)
    named = [file for file in kept if file.exists()]
    assert 1 <= len(named) < 5  # the last ones may have been at reading it back
    for number, file in enumerate(kept):
        if file not in named:
            backup(small, file, NOW)
        if file in named or number == 1:
            new = at(small, copy_of("template1"), tmp_path / f"new-{number}")
            restore(new, file)
            assert contents(Database.of(new)) == before
            assert files_in(new.home) == {name: digest for name, digest in state.items() if name not in MADE_AGAIN}


@pytest.mark.slow
def test_a_restore_that_is_killed_at_any_line_leaves_an_empty_database_and_goes_on(
    small: Settings, kept: Path, copy_of: Callable[[str], Database], tmp_path: Path
) -> None:
    places = [(copy_of("template1"), tmp_path / f"new-{number}") for number in range(7)]
    killed("restore", [(kept, target, home) for target, home in places])
    empty = 0
    for target, home in places:
        new = at(small, target, home)
        wait_until_alone(target)
        if is_empty(target):
            empty += 1
            restore(new, kept)
        assert contents(target) == contents(Database.of(small))
        left = {name: digest for name, digest in files_in(home).items() if not name.endswith(".part")}
        assert left == {name: sha256(small.home / name) for name in STATE}
    assert empty >= 4  # the last one may have been at its COMMIT


@pytest.mark.parametrize("behind", [0, 1, 2, 3])
def test_a_backup_of_an_earlier_version_is_brought_back_and_upgraded(
    small: Settings, copy_of: Callable[[str], Database], tmp_path: Path, behind: int
) -> None:
    newer = tuple(file.name for file in read_migrations()[len(read_migrations()) - behind :])
    older = of_version(copy_of("template1"), read_migrations()[-1 - behind].name, tmp_path / "migrations")
    with older.connect() as connection:
        connection.execute("INSERT INTO babylon_rl.simulated_hours VALUES ('2025-10-29T14:00', 1, true, now())")
    made, target = backup(at(small, older), tmp_path / "kept.zip", NOW), copy_of("template1")
    restore(at(small, target, tmp_path / "new"), tmp_path / "kept.zip")
    assert contents(target) == made.tables
    assert migrate(target).applied == newer
    with target.connect() as upgraded, copy_of("migrated").connect() as today:
        for schema in ("public", "babylon_rl"):
            assert read_tables(upgraded, schema) == read_tables(today, schema)
        assert upgraded.value("SELECT seed FROM babylon_rl.simulated_hours") == 1
