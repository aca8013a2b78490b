"""``babylon-rl serve``: the group that the servers' commands are registered in, and ``serve market``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

serve = typer.Typer(help="Run a server until it is interrupted.", no_args_is_help=True)


@serve.command("market")
def serve_market(
    snapshot: Annotated[Path, typer.Argument(help="A file of `benchmark generate`, or one of the game's.")],
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback whoever reaches it can play.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8010,
    idle: Annotated[float, typer.Option(help="Seconds after which a session that does nothing ends.", min=1)] = 600.0,
    out: Annotated[Path | None, typer.Option(help="A directory for the result of every session that ends.")] = None,
) -> None:
    """Let outside agents, in any language, play a snapshot over HTTP: observe, act, advance."""
    from babylon_rl.evaluation import serve_market as server
    from babylon_rl.evaluation.benchmark_markets import market_of
    from babylon_rl.evaluation.snapshot_file import load
    from babylon_rl.models.server import bind

    with bind(host, port) as bound:  # first, so that a taken port is said at once
        played = market_of(load(snapshot))

        def announce(url: str) -> None:
            print(f"Serving {played.id} on {url}. POST {url}/start begins a session. Ctrl-C ends it.", file=sys.stderr, flush=True)

        server.serve(played, bound, announce, idle_s=idle, results=out)
