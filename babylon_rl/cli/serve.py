"""``babylon-rl serve``: the group that the servers' commands are registered in."""

import typer

serve = typer.Typer(help="Run a server until it is interrupted.", no_args_is_help=True)
