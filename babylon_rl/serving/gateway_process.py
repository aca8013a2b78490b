"""The gateway as a process, or as several that share one port."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

from starlette.applications import Starlette

from babylon_rl.models.server import bind
from babylon_rl.serving.gateway import Gateway
from babylon_rl.serving.gateway_app import create_app
from babylon_rl.serving.http_server import server_options
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database, open_database

KEEP_ALIVE_S = 75
STOP_S = 10


class LateDatabase:
    """Database that is opened at the first call, in the thread that needs it; it may be away until then."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock, self._held = settings, threading.Lock(), ExitStack()
        self._database: Database | None = None

    def __call__(self) -> Database:
        """Return the open database.

        Raises:
            DatabaseError: it cannot be opened.
        """
        with self._lock:
            if self._database is None:
                self._database = self._held.enter_context(open_database(self._settings, prepare=False))
            return self._database

    def close(self) -> None:
        """Let go of an embedded server."""
        self._held.close()


def worker() -> Starlette:
    """Create the application of one of several processes, which reads the settings itself."""
    settings = load_settings()
    return create_app(Gateway(settings, LateDatabase(settings)))


def serve(settings: Settings, host: str, port: int, workers: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; ``announce`` gets lines for people once the address is bound."""
    import uvicorn

    bound = bind(host, port)
    bound.listen(2048)
    options = server_options(timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=STOP_S, log_level="warning")
    shown_host, shown_port = bound.getsockname()[:2]
    announce(configuration(settings))
    announce(f"Gateway on http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{shown_port}/v1. Ctrl-C ends it.")
    database = LateDatabase(settings)
    try:
        if workers == 1:
            uvicorn.Server(uvicorn.Config(create_app(Gateway(settings, database)), **options)).run(sockets=[bound])
        else:
            from uvicorn.supervisors import Multiprocess

            config = uvicorn.Config("babylon_rl.serving.gateway_process:worker", factory=True, workers=workers, **options)
            Multiprocess(config, sockets=[bound]).run()
    finally:
        database.close()


def configuration(settings: Settings) -> str:
    """The line by which an operator sees what the settings make of the registry."""
    pinned = settings.rl_model_version or settings.wandb_model
    parts = [
        f"USE_RL_MODEL {'on' if settings.rl_enabled else 'off'}",
        f"pinned to {pinned}" if pinned else "version as the registry says",
        f"at most {settings.rl_rollout_percentage:g} % of agents",
        f"fallback to base {'on' if settings.rl_fallback_to_base else 'off'}",
        f"recording {settings.trajectory_sampling_rate if settings.record_agent_trajectories else 0:.0%} of calls",
        f"LOCAL_ENDPOINT {settings.local_endpoint}",
    ]
    return f"RL Model Configuration: {', '.join(parts)}."
