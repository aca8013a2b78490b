"""Where an export goes: whole or not at all, over nothing that it did not write, and what goes wrong is a sentence without secrets."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from babylon_rl.errors import ExportError, UsageError
from babylon_rl.files.location import shown_url
from babylon_rl.settings import Settings
from babylon_rl.training.export import FORMATS
from babylon_rl.training.export.destination import MANIFEST, STAGING, describing, destination, read_manifest
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.training.exports import content_of

Write = Callable[..., list[str]]


class CountingFileSystem(MemoryFileSystem):
    """A remote place in memory that counts uploads, and breaks off when it has had ``allowed`` of them."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    uploads: ClassVar[list[str]] = []
    allowed: ClassVar[int] = 1000

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counting://", "memory://")))

    def put_file(self, lpath: str, rpath: str, **given: Any) -> None:
        if len(self.uploads) >= self.allowed:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.uploads.append(rpath)
        super().put_file(lpath, rpath, **given)


@pytest.fixture
def write(settings: Settings) -> Write:
    """``write(target, a="text", force=False)``: export files of these names and texts."""

    def run(target: Path | str, force: bool = False, fail: bool = False, **files: str) -> list[str]:
        with describing(str(target)), destination(str(target), settings.home / "exports", force=force) as place:
            for name, text in files.items():
                place.new(name).write(text.encode())
                place.finished(name)
            if fail:
                raise KeyboardInterrupt
            return place.commit({})

    return run


@pytest.fixture
def counting() -> Iterator[type[CountingFileSystem]]:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    CountingFileSystem.uploads, CountingFileSystem.allowed = [], 1000
    yield CountingFileSystem
    CountingFileSystem.store.clear()
    CountingFileSystem.pseudo_dirs[:] = [""]


def texts(directory: Path) -> dict[str, str]:
    return {name: content.decode() for name, content in content_of(directory).items() if name != MANIFEST}


def test_a_directory_is_made_and_its_next_export_replaces_it(write: Write, tmp_path: Path) -> None:
    made = write(tmp_path / "x" / "y", **{"a/b": "1", "a/c": "2", "d": "3"})
    assert made == [str(tmp_path / "x" / "y" / name) for name in ("a/b", "a/c", "d", MANIFEST)]
    write(tmp_path / "x" / "y", **{"d": "4"})
    assert texts(tmp_path / "x" / "y") == {"d": "4"}
    assert not (tmp_path / "x" / "y" / "a").exists()


def test_files_of_others_are_neither_touched_nor_deleted(write: Write, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="no export wrote"):
        write(tmp_path, a="1")
    assert texts(tmp_path) == {"notes": "mine"}
    write(tmp_path, force=True, a="1")
    write(tmp_path, b="2")
    assert texts(tmp_path) == {"notes": "mine", "b": "2"}
    with pytest.raises(UsageError, match=f"{tmp_path / 'notes'} is in the way"):
        write(tmp_path, c="3", notes="4")
    assert texts(tmp_path) == {"notes": "mine", "b": "2"}
    write(tmp_path, force=True, notes="4")
    assert texts(tmp_path) == {"notes": "4"}


def test_a_file_that_was_changed_since_is_not_replaced_unasked(write: Write, tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2")
    (tmp_path / "a").write_text("my own words")
    with pytest.raises(UsageError, match="was changed since it was exported"):
        write(tmp_path, a="3")
    write(tmp_path, force=True, c="3")
    assert texts(tmp_path) == {"a": "my own words", "c": "3"}
    (tmp_path / "c").unlink()
    write(tmp_path, force=True, d="4")


def test_an_export_that_breaks_off_leaves_everything_as_it_was(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "old", a="1")
    before = content_of(tmp_path)
    for target in ("old", "new/er"):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / target, fail=True, a="2", b="3")
    assert content_of(tmp_path) == before and not (tmp_path / "new").exists()


def test_what_a_killed_export_left_is_cleared_away_by_the_next(write: Write, settings: Settings, tmp_path: Path) -> None:
    write(tmp_path, a="1")
    child = os.fork()
    if not child:
        with destination(str(tmp_path), settings.home / "exports") as place:
            place.new("z/b").write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / STAGING / "z" / "b").exists()
    write(tmp_path, c="2")
    assert texts(tmp_path) == {"c": "2"} and not (tmp_path / STAGING).exists()


def test_a_swap_that_was_cut_short_is_finished_by_the_next_export(write: Write, tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2")
    child = os.fork()
    if not child:
        real, renames = os.replace, []

        def replace(source: Any, target: Any) -> None:
            renames.append(target)
            if len(renames) == 3:  # the manifest, one file, and then the end
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace  # type: ignore[assignment]
        write(tmp_path, a="3", c="4")
    os.waitpid(child, 0)
    half = read_manifest((tmp_path / MANIFEST).read_bytes())
    assert half is not None and half.state == "incomplete"
    assert {name: text for name, text in texts(tmp_path).items() if STAGING not in name} == {"a": "3", "b": "2"}
    write(tmp_path, d="5")
    assert texts(tmp_path) == {"d": "5"}


def test_two_exports_into_one_directory_do_not_mix(write: Write, settings: Settings, tmp_path: Path) -> None:
    with destination(str(tmp_path), settings.home / "exports") as first:
        first.new("a").write(b"1")
        first.finished("a")
        with pytest.raises(UsageError, match="Another export is being written"):
            write(tmp_path, a="2")
        first.commit({})
    assert texts(tmp_path) == {"a": "1"}


def test_a_manifest_that_points_elsewhere_is_not_believed(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x", a="1")
    (tmp_path / "precious").write_text("mine")
    manifest = tmp_path / "x" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"a"', '"../precious"'))
    with pytest.raises(UsageError, match="no export wrote"):
        write(tmp_path / "x", b="2")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_full_disk_is_a_sentence_and_nothing_is_left_behind(write: Write, tmp_path: Path) -> None:
    write(tmp_path, a="1")
    with full_disk(10_000), pytest.raises(ExportError, match=f"{tmp_path} cannot be written: File too large"):
        write(tmp_path, a="2", b="x" * 20_000)
    assert texts(tmp_path) == {"a": "1"}


def test_a_place_that_is_no_directory_is_a_sentence(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing"):
        with pytest.raises(ExportError, match=f"{target} cannot be written: "):
            write(target, a="1")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_url_holds_the_same_files_as_a_directory(form: str, tmp_path: Path, request: pytest.FixtureRequest, settings: Settings) -> None:
    from babylon_rl_tests.training.exports import exported, windows_of

    connection = request.getfixturevalue("connection")
    windows = windows_of(connection)[-3:]
    exported(connection, windows, tmp_path / "local", form, settings)
    exported(connection, windows, f"file://{tmp_path}/by%20url", form, settings)
    done = exported(connection, windows, f"memory://{tmp_path}/remote", form, settings)
    memory = fsspec.filesystem("memory")
    remote = {name.removeprefix(f"{tmp_path}/remote/"): memory.cat_file(name) for name in memory.find(f"{tmp_path}/remote")}
    assert content_of(tmp_path / "local") == content_of(tmp_path / "by url") == remote
    assert done.files == tuple(f"memory://{tmp_path}/remote/{name}" for name in _order(done.files, remote))
    assert list((settings.home / "exports").iterdir()) == []


def _order(files: tuple[str, ...], remote: dict[str, bytes]) -> list[str]:
    assert len(files) == len(remote)
    return sorted(remote, key=lambda name: [file.endswith("/" + name) for file in files].index(True))


def test_an_interrupted_upload_goes_on_where_it_stopped(write: Write, counting: type[CountingFileSystem]) -> None:
    counting.allowed = 2
    files = {"w1/a": "1", "w1/b": "2", "w2/a": "3", "w2/b": "4"}
    with pytest.raises(ExportError, match="counting://bucket/x cannot be written: Connection reset by peer"):
        write("counting://bucket/x", **files)
    assert not [name for name in fsspec.filesystem("counting").find("bucket/x") if STAGING not in name]
    counting.allowed = 1000
    write("counting://bucket/x", **files)
    assert sent(counting) == list(files)
    write("counting://bucket/x", **files | {"w3/a": "5", "w1/b": "changed"})
    assert sent(counting)[4:] == ["w1/b", "w3/a"]
    assert not fsspec.filesystem("counting").exists(f"bucket/x/{STAGING}")


def test_an_interrupted_upload_leaves_the_earlier_export_as_it_was(write: Write, counting: type[CountingFileSystem]) -> None:
    place = fsspec.filesystem("counting")
    write("counting://bucket/x", a="1", b="2")
    before = {name: place.cat_file(name) for name in place.find("bucket/x")}
    counting.allowed = len(counting.uploads) + 1
    with pytest.raises(ExportError, match="Connection reset by peer"):
        write("counting://bucket/x", a="3", b="4")
    assert {name: place.cat_file(name) for name in place.find("bucket/x") if STAGING not in name} == before


def test_a_file_that_arrives_with_other_content_is_no_export(write: Write, counting: type[CountingFileSystem]) -> None:
    class Lossy(CountingFileSystem):
        """A place that keeps the first byte of each file."""

        protocol = "counting"

        def put_file(self, lpath: str, rpath: str, **given: Any) -> None:
            self.pipe_file(rpath, Path(lpath).read_bytes()[:1])

    fsspec.register_implementation("counting", Lossy, clobber=True)
    with pytest.raises(ExportError, match="a arrived with other content than it was sent with"):
        write("counting://bucket/x", a="123")


def sent(counting: type[CountingFileSystem]) -> list[str]:
    """Names of the files of exports that went up, without their manifests."""
    names = [name.rpartition(f"{STAGING}/")[2] for name in counting.uploads]
    return [name for name in names if name != MANIFEST]


def test_a_remote_place_of_others_is_refused_and_theirs_stay(write: Write, counting: type[CountingFileSystem]) -> None:
    place = fsspec.filesystem("counting")
    place.pipe_file("bucket/x/theirs", b"1")
    with pytest.raises(UsageError, match="holds files that no export wrote"):
        write("counting://bucket/x", a="1")
    write("counting://bucket/x", force=True, a="1")
    with pytest.raises(UsageError, match="theirs is in the way"):
        write("counting://bucket/x", theirs="2")
    write("counting://bucket/x", b="2")
    assert {name.rpartition("x/")[2] for name in place.find("bucket/x")} == {"theirs", "b", MANIFEST}


def test_a_missing_package_and_an_unknown_scheme_are_sentences_without_secrets(write: Write) -> None:
    for url in ("gs://key:s3cret@bucket/x", "nope://key:s3cret@bucket/x?sig=s3cret"):
        with pytest.raises(UsageError) as refused:
            write(url, a="1")
        assert "s3cret" not in str(refused.value) and "://bucket/x" in str(refused.value)
    with pytest.raises(UsageError, match="gcsfs.* Install it here with pip"):
        write("gs://bucket/x", a="1")


def test_a_failing_place_is_told_without_its_secrets(settings: Settings, counting: type[CountingFileSystem]) -> None:
    url = "counting://key:s3cret@bucket/x?sig=s1gned"
    with pytest.raises(ExportError) as failed, describing(url):
        raise OSError(f"no answer from {url} (s3cret, sig=s1gned)")
    assert "s3cret" not in str(failed.value) and "s1gned" not in str(failed.value)
    assert shown_url(url) == "counting://bucket/x"


def test_no_part_of_a_chained_url_shows_its_secrets(settings: Settings) -> None:
    assert shown_url("blockcache::sftp://u:pw@h/x") == "blockcache::sftp://h/x"
    assert shown_url("zip://a.zip?k=1::simplecache::sftp://u:p::w@h/x?sig=2") == "zip://a.zip::simplecache::sftp://h/x"
    assert shown_url("sftp://u:p::w::1@h/x") == "sftp://h/x"
    assert shown_url("http://u:pw@[::1]:8000/v1") == "http://[::1]:8000/v1"
    url = "blockcache::sftp://u:s3cret@h/x?sig=s1gned"
    with pytest.raises(ExportError) as failed, describing(url):
        raise OSError(f"no answer from {url} (s3cret, sig=s1gned)")
    assert "s3cret" not in str(failed.value) and "s1gned" not in str(failed.value)


def test_a_password_is_not_shown_in_its_decoded_form_either(settings: Settings) -> None:
    with pytest.raises(ExportError) as failed, describing("sftp://u:s3%40cret@h/x"):
        raise OSError("h refuses s3@cret as a password")
    assert "h refuses ... as a password" in str(failed.value)
