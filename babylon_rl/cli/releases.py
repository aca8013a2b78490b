"""Commands ``models deploy``, ``rollback``, ``pause``, ``resume``, ``resolve`` and ``agents``: which agents get which version."""

import getpass
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

import typer

from babylon_rl.cli.output import Column, JsonOption, Table, emit
from babylon_rl.errors import UsageError
from babylon_rl.serving import releases
from babylon_rl.serving.recorded_privacy import hides_agents
from babylon_rl.serving.routing import base_route, route
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.live_usage import read_last_calls
from babylon_rl.store.releases import BASE, ReleaseAuthor, Rollout, read_routing
from babylon_rl.windows import moment, utc_now

AGENTS = (
    Column("agent", "agentId"),
    Column("version", "version"),
    Column("expected", "expected"),
    Column("fallback", "fallback"),
    Column("last call", "lastCallAt"),
)
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]


def register(models: typer.Typer) -> None:
    for command in (deploy, rollback, pause, resume, resolve, agents):
        models.command(command.__name__)(command)


def deploy(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A registered version, such as v1.0.0.")],
    strategy: Annotated[
        Literal["immediate", "gradual", "test"], typer.Option(help="All agents; a share of them; or those of --agents alone.")
    ] = "gradual",
    percentage: Annotated[float | None, typer.Option(min=0, max=100, help="Share of agents of a gradual rollout. Default: 1.")] = None,
    agents: Annotated[str, typer.Option(help="Agent ids, separated by commas, for --strategy test.")] = "",
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Put a version in front of agents. With another share, change its rollout."""
    ids = [agent.strip() for agent in agents.split(",") if agent.strip()]
    how: dict[str, Any] = {"strategy": strategy, "percentage": percentage, "agent_ids": ids}
    _change(lambda connection, settings: releases.deploy(connection, version, settings, author_of(reason), **how), as_json)


def rollback(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The version to return to, or base. Default: the one before.")
    ] = None,
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Take back the version on trial, else the deployed one. Nothing automatic deploys it again."""
    _change(lambda connection, settings: releases.rollback(connection, settings, author_of(reason), version), as_json)


def pause(reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Hold the version on trial at its share of agents."""
    _change(lambda connection, _: releases.pause(connection, author_of(reason)), as_json)


def resume(reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Let a paused version advance again."""
    _change(lambda connection, _: releases.resume(connection, author_of(reason)), as_json)


def resolve(
    agent: Annotated[str | None, typer.Option(help="The agent's id. Default: a client without one.")] = None,
    model: Annotated[str | None, typer.Option(help="The model name in the request.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which version an agent gets, and why."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        found = route(read_routing(connection), settings, model, agent)
    fallback = base_route(settings, "", found.upstream).model_name if settings.rl_fallback_to_base and found.arm != "base" else None
    document = {
        "version": found.version, "arm": found.arm, "reason": found.reason, "share": found.share, "fallback": fallback,
        "model": found.model_name, "upstream": found.upstream,
    }  # fmt: skip
    share = "" if found.share is None else f" ({found.share:g} % of agents)"
    sentence = f"{found.version or 'base'}: {found.reason}{share}; asked as {found.model_name} at {found.upstream}."
    emit(document, [sentence], as_json)


def agents(
    hours: Annotated[float, typer.Option(min=0, help="Agents that asked the gateway within so many hours.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """List each agent's version, and unexpected ones."""
    settings, now = load_settings(), utc_now()
    # A hash or nothing stands for the agent in each call, and routing goes by the agent's own id.
    if hides_agents(settings):
        raise UsageError("RECORD_PRIVATE_FIELDS keeps agents out of recorded calls, so that their versions cannot be listed.")
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        routing, calls = read_routing(connection), read_last_calls(connection, now - timedelta(hours=hours))
    rows = [
        {"agentId": call.agent_id, "version": call.version or BASE,
         "expected": route(routing, settings, None, call.agent_id).version or BASE,
         "fallback": call.fallback, "lastCallAt": moment(call.at)}
        for call in calls
    ]  # fmt: skip
    elsewhere = [row["agentId"] for row in rows if row["version"] != row["expected"]]
    counted = f"{len(elsewhere)} of {len(rows)} agents were not on the expected version at their last call."
    emit({"agents": rows, "notOnExpectedVersion": elsewhere}, [Table(AGENTS, rows), counted], as_json)


def author_of(reason: str) -> ReleaseAuthor:
    """The author of a transition by hand: the user of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unnamed user"
    return ReleaseAuthor(f"cli: {user}", reason, utc_now())


def _change(change: Callable[[Connection, Settings], Rollout], as_json: bool) -> None:
    """Carry out a transition, and show the rollout that it leaves."""
    settings = load_settings()
    with open_database(settings) as database, database.connect() as connection:
        rollout = change(connection, settings)
        share = f"{len(rollout.agent_ids)} listed agents" if rollout.strategy == "test" else f"{rollout.percentage:g} % of agents"
        document = {
            "success": True, "deploymentId": str(rollout.rollout_id), "version": rollout.version, "state": rollout.state,
            "strategy": rollout.strategy, "percentage": rollout.percentage, "agents": list(rollout.agent_ids),
            "previousVersion": rollout.previous_version, "agentsUpdated": releases.agents_updated(connection, settings, utc_now()),
        }  # fmt: skip
        said = f"{rollout.version} is {rollout.state.replace('_', ' ')}, {share}."
        if rollout.state == "rolled_back":
            said = f"{rollout.version} is rolled back; its agents get {read_routing(connection).deployed or 'the base'}."
        emit(document, [said], as_json)
