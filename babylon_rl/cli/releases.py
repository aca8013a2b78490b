"""Commands ``models deploy``, ``rollback``, ``pause``, ``resume`` and ``resolve``: which agents get which version."""

import getpass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from babylon_rl.cli.output import JsonOption, emit
from babylon_rl.settings import load_settings
from babylon_rl.windows import utc_now

if TYPE_CHECKING:
    from babylon_rl.serving.releases import Author
    from babylon_rl.store.releases import Rollout

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]


def register(models: typer.Typer) -> None:
    """Add these commands to the group ``models``."""
    for command in (deploy, rollback, pause, resume, resolve):
        models.command(command.__name__)(command)


def deploy(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A registered version, such as v1.0.0.")],
    strategy: Annotated[
        Literal["immediate", "gradual", "test"], typer.Option(help="All agents; a share of them; or those of --agents alone.")
    ] = "gradual",
    percentage: Annotated[
        float | None, typer.Option(min=0, max=100, help="Share of agents of a gradual rollout. Default: the first of ROLLOUT_STEPS.")
    ] = None,
    agents: Annotated[str, typer.Option(help="Agent ids, separated by commas, for --strategy test.")] = "",
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Put a version in front of agents; with another share, change its rollout."""
    from babylon_rl.serving import releases
    from babylon_rl.store.database import open_database

    settings = load_settings()
    agent_ids = [agent.strip() for agent in agents.split(",") if agent.strip()]
    with open_database(settings) as database, database.connect() as connection:
        rollout = releases.deploy(
            connection, version, settings, _author(reason), strategy=strategy, percentage=percentage, agent_ids=agent_ids
        )
    _emit(rollout, as_json)


def rollback(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The version to return to, or base. Default: the one before.")
    ] = None,
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Take back the version on trial, else the deployed one; nothing automatic deploys it again."""
    from babylon_rl.serving import releases
    from babylon_rl.store.database import open_database

    settings = load_settings()
    with open_database(settings) as database, database.connect() as connection:
        _emit(releases.rollback(connection, settings, _author(reason), version), as_json)


def pause(reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Hold the version on trial at its share of agents."""
    from babylon_rl.serving import releases
    from babylon_rl.store.database import open_database

    with open_database(load_settings()) as database, database.connect() as connection:
        _emit(releases.pause(connection, _author(reason)), as_json)


def resume(reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Let a paused version advance again."""
    from babylon_rl.serving import releases
    from babylon_rl.store.database import open_database

    with open_database(load_settings()) as database, database.connect() as connection:
        _emit(releases.resume(connection, _author(reason)), as_json)


def resolve(
    agent: Annotated[str | None, typer.Option(help="The agent's id. Default: a client without one.")] = None,
    model: Annotated[str | None, typer.Option(help="The model name in the request.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which version an agent gets, and why."""
    from babylon_rl.serving.routing import base_route, route
    from babylon_rl.store.database import open_database
    from babylon_rl.store.releases import read_routing

    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        found = route(read_routing(connection), settings, model, agent)
    fallback = base_route(settings, "", found.upstream).model_name if settings.rl_fallback_to_base and found.arm != "base" else None
    document = {
        "version": found.version, "arm": found.arm, "reason": found.reason, "share": found.share, "fallback": fallback,
        "model": found.model_name, "upstream": found.upstream,
    }  # fmt: skip

    def render(out: Any) -> None:
        share = "" if found.share is None else f" ({found.share:g} % of agents)"
        out.print(f"{found.version or 'base'}: {found.reason}{share}; asked as {found.model_name} at {found.upstream}.", markup=False)

    emit(document, render, as_json)


def _author(reason: str) -> "Author":
    from babylon_rl.serving.releases import Author

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unnamed user"
    return Author(f"cli: {user}", reason, utc_now())


def _emit(rollout: "Rollout", as_json: bool) -> None:
    share = f"{len(rollout.agent_ids)} listed agents" if rollout.strategy == "test" else f"{rollout.percentage:g} % of agents"
    document = {
        "success": True, "deploymentId": str(rollout.rollout_id), "version": rollout.version, "state": rollout.state,
        "strategy": rollout.strategy, "percentage": rollout.percentage, "agents": list(rollout.agent_ids),
        "previousVersion": rollout.previous_version,
    }  # fmt: skip
    emit(document, lambda out: out.print(f"{rollout.version} is {rollout.state.replace('_', ' ')}, {share}.", markup=False), as_json)
