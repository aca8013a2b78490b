"""``babylon-rl serve model``: the base model or a checkpoint behind an OpenAI-compatible endpoint."""

import json
import sys
from typing import Annotated

import typer

from babylon_rl.cli.serve import serve
from babylon_rl.errors import ModelUnavailable
from babylon_rl.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    serve.command("model")(serve_model)
    if all(group.typer_instance is not serve for group in app.registered_groups):
        app.add_typer(serve, name="serve")


def serve_model(
    version: Annotated[str, typer.Argument(help="A version such as v1.0.0, or base.")] = "base",
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback it is open to the network, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8000,
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest while anything else runs.", min=1)] = 1,
) -> None:
    """Serve the base model and, under its version's name, a checkpoint."""
    from babylon_rl.models import checkpoints, packaged, server
    from babylon_rl.models.policy import Policy
    from babylon_rl.models.threads import set_threads

    settings = load_settings()
    checkpoint = settings.home / "checkpoints" / version
    if version != server.BASE_MODEL_NAME and not checkpoint.is_dir():
        folder = settings.home / "checkpoints"
        known = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []
        raise ModelUnavailable(f"There is no checkpoint {version!r} in {folder}; there are: {', '.join(['base', *known])}.")
    bound = server.bind(host, port)
    set_threads(threads)
    base_dir = packaged.base_model_dir(settings)
    if version != server.BASE_MODEL_NAME:
        checkpoints.verify(checkpoint, base_dir)
    policy = Policy.load(base_dir)
    if version != server.BASE_MODEL_NAME:
        policy.add_adapter(version, checkpoint)
    server.serve(policy, bound, _announce)


def _announce(line: str) -> None:
    bound = json.loads(line)
    print(
        f"Serving {', '.join(bound['models'])} on http://{bound['host']}:{bound['port']}/v1. Ctrl-C ends it.", file=sys.stderr, flush=True
    )
