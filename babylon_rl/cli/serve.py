"""Command group ``serve``: versions, gateway, admin API and market as servers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from babylon_rl.cli.output import say
from babylon_rl.errors import ModelUnavailable
from babylon_rl.settings import load_settings

app = typer.Typer(name="serve", help="Run a server until it is interrupted.", no_args_is_help=True)


@app.command("model")
def serve_model(
    version: Annotated[str, typer.Argument(help="A version such as v1.0.0, or base.")] = "base",
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback it is open to the network, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8000,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: OMP_NUM_THREADS, or all cores, at most 4.", min=1)] = None,
) -> None:
    """Serve the base model and every version under its name.

    That is every checkpoint here or at MODEL_STORAGE_URL, those published later too.
    """
    from babylon_rl.http_server import bind
    from babylon_rl.models import base_model, checkpoints
    from babylon_rl.models.checkpoint_store import absence, checkpoint_to_serve
    from babylon_rl.models.threads import set_threads

    settings = load_settings()
    checkpoint = None if version == base_model.BASE_MODEL_NAME else checkpoint_to_serve(version, settings)
    if checkpoint is not None:
        remote = checkpoints.read_remote(checkpoint)
        if remote is not None:
            raise ModelUnavailable(
                f"The weights of {version} are not on this machine: {remote.service} serves them as {remote.inference_name} at "
                f"{remote.inference_url}, and nothing needs to be started."
            )
    elif version != base_model.BASE_MODEL_NAME:
        folder = settings.home / "checkpoints"
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []
        raise ModelUnavailable(f"{absence(version, settings)} Here are: {', '.join(['base', *names])}.")
    # The port is taken before the model loads: a port in use is reported at once.
    bound = bind(host, port)
    set_threads(threads)
    from babylon_rl.models import server  # loads torch
    from babylon_rl.models.policy import Policy

    base_dir = base_model.base_model_dir(settings)
    if checkpoint is not None:
        checkpoints.verify(checkpoint, base_dir)
    policy = Policy.load(base_dir)
    if checkpoint is not None:
        policy.add_adapter(version, checkpoint)

    def published(name: str) -> Path | None:
        directory = checkpoint_to_serve(name, settings)
        # Asked for each name that the server does not know yet. A pointer to a service has no weights to serve.
        if directory is None or checkpoints.read_remote(directory) is not None:
            return None
        checkpoints.verify(directory, base_dir)
        return directory

    def announce(line: str) -> None:
        bound = json.loads(line)
        say(f"Serving {', '.join(bound['models'])} on http://{bound['host']}:{bound['port']}/v1. Ctrl-C ends it.")

    server.serve(policy, bound, announce, published)


@app.command("market")
def serve_market(
    snapshot: Annotated[Path, typer.Argument(help="A file of `benchmark generate`, or one of the game's.")],
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback anybody who reaches it can play.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8010,
    idle: Annotated[float, typer.Option(help="Seconds after which a session that does nothing ends.", min=1)] = 600.0,
    out: Annotated[Path | None, typer.Option(help="A directory for the result of every session that ends.")] = None,
) -> None:
    """Serve a snapshot to outside agents over HTTP. In any language, they observe, act and advance."""
    from babylon_rl.evaluation.snapshot_file import load
    from babylon_rl.evaluation.snapshots import snapshot_of
    from babylon_rl.http_server import bind
    from babylon_rl.serving import market_server as server

    with bind(host, port) as bound:  # first, so that a taken port is said at once
        played = snapshot_of(load(snapshot))
        says = "Serving {0} on {1}. POST {1}/start begins a session. Ctrl-C ends it."
        server.serve(played, bound, lambda url: say(says.format(played.id, url)), idle_s=idle, results=out)


@app.command("gateway")
def serve_gateway(
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback only once there is a key (`keys create`).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(help="Processes that share the port.", min=1, max=64)] = 1,
) -> None:
    """Serve agents in place of their provider. It chooses the version and records the call. The server is OpenAI-compatible."""
    from babylon_rl.serving.gateway_process import serve as run

    run(load_settings(), host, port, workers, say)


@app.command("admin")
def serve_admin(
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback only once there is a key (`keys create`).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8090,
) -> None:
    """Serve the admin page and API. Status, trainings, versions, cron endpoints."""
    from babylon_rl.serving.admin_api import serve as run

    run(load_settings(), host, port, say)
