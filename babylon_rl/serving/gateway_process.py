"""Gateway as a process, several on one port, or a command's thread."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from starlette.types import ASGIApp

from babylon_rl.errors import BabylonError, ModelUnavailable
from babylon_rl.logs import secrets_of, start_logs
from babylon_rl.models.server import bind
from babylon_rl.serving.access import new_key
from babylon_rl.serving.call_writer import call_writer, wait_until_written
from babylon_rl.serving.gateway import Gateway
from babylon_rl.serving.gateway_app import create_app
from babylon_rl.serving.http_server import server_options
from babylon_rl.serving.live_state import ANSWER_S
from babylon_rl.serving.routing import route
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import open_database
from babylon_rl.store.releases import RoutingTable, read_routing
from babylon_rl.traces import start_traces

KEEP_ALIVE_S = 75
STOP_S = 10
START_S = 60.0


def worker() -> ASGIApp:
    """Create the application of one of several processes, which reads the settings itself."""
    settings = load_settings()
    start_logs(settings)
    start_traces(settings.otel_exporter_otlp_endpoint, secrets_of(settings))
    return create_app(Gateway(settings), _metrics_directory(settings, os.getppid()))


def serve(settings: Settings, host: str, port: int, workers: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; ``announce`` gets lines for people once the address is bound."""
    import uvicorn

    start_logs(settings)
    start_traces(settings.otel_exporter_otlp_endpoint, secrets_of(settings))
    bound = bind(host, port)
    bound.listen(2048)
    options = server_options(timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=STOP_S, log_level="warning")
    shown_host, shown_port = bound.getsockname()[:2]
    with ExitStack() as stack:
        announce(configuration(settings, _registry(settings, stack)))
        announce(f"Gateway on http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{shown_port}/v1. Ctrl-C ends it.")
        stack.enter_context(call_writer(settings))
        if workers == 1:
            uvicorn.Server(uvicorn.Config(create_app(Gateway(settings)), **options)).run(sockets=[bound])
        else:
            from uvicorn.supervisors import Multiprocess

            directory = _metrics_directory(settings, os.getpid())
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            config = uvicorn.Config("babylon_rl.serving.gateway_process:worker", factory=True, workers=workers, **options)
            Multiprocess(config, sockets=[bound]).run()


@contextmanager
def running_gateway(settings: Settings) -> Iterator[tuple[str, str]]:
    """Serve on loopback in a thread until the block ends.

    Yields the base URL for OpenAI clients, and a key that this gateway alone takes.

    It routes by the registry from the first request on, and when the block ends its calls are in the database.

    Raises:
        DatabaseError: the calls could not be written in time; they wait on disk.
        ModelUnavailable: it did not start in time, or could not read the registry.
    """
    import uvicorn

    key = new_key()
    gateway = Gateway(settings, own_key=key)
    with bind("127.0.0.1", 0) as bound, call_writer(settings):
        bound.listen(512)
        options = server_options(timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=STOP_S, log_level="warning")
        server = uvicorn.Server(uvicorn.Config(create_app(gateway), **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="babylon-gateway", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + START_S
            while not (server.started and gateway.state.reads):
                if time.monotonic() > deadline or not thread.is_alive():
                    raise ModelUnavailable(f"The gateway did not start within {START_S:g} s: {gateway.state.problem or 'see its log'}.")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1", key
        finally:
            server.should_exit = True
            thread.join()
        wait_until_written(settings)


def _metrics_directory(settings: Settings, supervisor: int) -> Path:
    return settings.home / "gateway" / f"metrics-{supervisor}"


def _registry(settings: Settings, stack: ExitStack) -> RoutingTable | None:
    """Read the routing table; None if the database does not answer.

    An embedded server then runs as long as ``stack``.
    """
    try:
        database = stack.enter_context(open_database(settings, prepare=False))
        with database.connect(autocommit=True) as connection, connection.answering_within(ANSWER_S):
            return read_routing(connection)
    except (BabylonError, psycopg.Error, OSError):
        return None


def configuration(settings: Settings, table: RoutingTable | None) -> str:
    """The line that tells an operator how calls are routed.

    ``table`` is None if the registry does not answer.
    """
    pinned = settings.rl_model_version or settings.wandb_model
    parts = [
        f"USE_RL_MODEL {'on' if settings.rl_enabled else 'off'}",
        *([f"pinned to {pinned}"] if pinned else []),
        *(["the registry does not answer"] if table is None else _released(table, settings)),
        f"at most {settings.rl_rollout_percentage:g} % of agents",
        f"fallback to base {'on' if settings.rl_fallback_to_base else 'off'}",
        f"recording {settings.trajectory_sampling_rate if settings.record_agent_trajectories else 0:.0%} of calls",
        f"LOCAL_ENDPOINT {settings.local_endpoint}",
    ]
    line = f"RL Model Configuration: {', '.join(parts)}."
    try:
        if table is not None:
            route(table, settings)
    except ModelUnavailable as unusable:
        return f"{line} Warning: RL_MODEL_VERSION={pinned}: {unusable}"
    return line


def _released(table: RoutingTable, settings: Settings) -> list[str]:
    parts = [f"{table.deployed} is deployed" if table.deployed else "no version is deployed"]
    if (trial := table.trial) is not None:
        share = f"{min(trial.percentage, settings.rl_rollout_percentage):g} % of agents"
        parts.append(f"{trial.version} is {trial.state} for {f'{len(trial.agent_ids)} listed agents' if trial.agent_ids else share}")
    if (test := table.test) is not None:
        arms = ", ".join(f"{arm} {share:g} %" for arm, share in zip(test.arms, test.shares, strict=True))
        parts.append(f"A/B test {test.name} ({arms})")
    return parts
