"""Model server as a child process that never outlives its parent.

The child chooses a free port and prints it on standard output once it is bound. Its standard input is a pipe that only the parent holds,
so that it ends when the parent dies, for whatever reason.
"""

import json
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from babylon_rl.errors import ModelUnavailable, require
from babylon_rl.project_files import import_root
from babylon_rl.settings import Settings

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
_LOG_TAIL_LINES = 12
# The base URL of an endpoint that answers for ``base`` and the adapters (name -> directory), while the block lasts.
Serving = Callable[[Settings, Mapping[str, Path]], AbstractContextManager[str]]


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests; ``url`` is the base URL for OpenAI clients."""

    url: str
    port: int
    pid: int


@contextmanager
def running_server(
    base_dir: Path, adapters: Mapping[str, Path] | None = None, *, threads: int = 1, port: int = 0, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[RunningServer]:
    """Serve ``base`` and adapters (name -> directory) on loopback within the block. Raises ModelUnavailable, with the end of its log."""
    require("torch", "transformers", "peft")
    directories = {name: str(directory) for name, directory in (adapters or {}).items()}
    command = [sys.executable, "-m", "babylon_rl.models.server", json.dumps([str(base_dir), directories, threads, port])]
    with tempfile.TemporaryDirectory(prefix="babylon-rl-serve-") as folder:
        log = Path(folder) / "server.log"
        # Its own session: Ctrl-C reaches the parent alone, which stops the child on its way out.
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=import_root(), start_new_session=True
            ) as child,
        ):
            try:
                bound = _announced_port(child, log, start_timeout_s)
                yield RunningServer(f"http://127.0.0.1:{bound}/v1", bound, child.pid)
            finally:
                _stop(child)


@contextmanager
def kept_open(serving: Serving) -> Iterator[Serving]:
    """Keep the endpoint of ``serving`` between uses, until another one is needed or the block ends.

    A server that starts takes ten seconds of a core, and the analyses of a gate, the confirmation and the hours of the next generation
    ask the same models. An endpoint whose use ended with an error is not used again.
    """
    with ExitStack() as stack:
        key: tuple[object, ...] = ()
        kept: dict[str, Path] = {}
        url = ""

        @contextmanager
        def serve(settings: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
            nonlocal key, kept, url
            wanted = (settings.home, settings.local_base_model)
            # An endpoint that serves more adapters than are asked for does as well.
            if wanted != key or not adapters.items() <= kept.items():
                key = ()  # also if the next one does not start
                # The old one ends first: two servers at once would hold the base twice.
                stack.close()
                url, key, kept = stack.enter_context(serving(settings, adapters)), wanted, dict(adapters)
            try:
                yield url
            except BaseException as error:
                key = ()
                # With the error, so that one which keeps it open in turn ends it, too.
                stack.__exit__(type(error), error, error.__traceback__)
                raise

        yield serve


def _announced_port(child: subprocess.Popen[bytes], log: Path, timeout_s: float) -> int:
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise ModelUnavailable(f"The model server did not start in time. The end of its log:\n{_tail(log)}")
    line = child.stdout.readline()
    if not line:
        raise ModelUnavailable(f"The model server ended with status {child.wait()} while starting. The end of its log:\n{_tail(log)}")
    return int(json.loads(line)["port"])


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (empty)"
