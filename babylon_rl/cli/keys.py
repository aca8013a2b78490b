"""Command group ``keys``: the clients of the gateway and the admin API."""

from typing import Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, listed
from babylon_rl.errors import UsageError
from babylon_rl.serving.access import key_hash, new_key
from babylon_rl.serving.chat_request import is_name
from babylon_rl.settings import load_settings
from babylon_rl.store.client_keys import ClientKey, create_key, read_keys, revoke_key
from babylon_rl.store.database import open_database
from babylon_rl.windows import utc_now

app = typer.Typer(name="keys", help="Bearer keys for the gateway and the admin API.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A client's name.")]


@app.command("create")
def create(
    name: NameArgument,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests a minute. Default: no limit.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of prompts and answers a minute. Default: no limit.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="The key also opens the admin API: deploy, roll back, train, upload.")] = False,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="Id of an agent that the key speaks for, or a pattern with *; more by commas or again. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once."""
    agents = [one.strip() for given in agent or () for one in given.split(",")]
    if not all(is_name(one) for one in agents):
        raise UsageError("An agent's id has 1 to 200 printable characters.")
    if agents and admin:
        raise UsageError("A key of agents opens no admin API: make two keys, one with --agent and one with --admin.")
    if not (0 < len(name) <= 100 and name.isprintable() and name.strip() == name):
        raise UsageError("A name has 1 to 100 printable characters, without spaces around them.")
    secret = new_key()
    # The database gets the hash alone, so this command is the only one that can show the key.
    key = ClientKey(name, key_hash(secret), requests, tokens, utc_now(), admin=admin, agents=agents)
    with open_database(load_settings()) as database, database.connect() as connection:
        create_key(connection, key)
    remark = f"The key of {name}. It is stored nowhere: copy it now. From now on every client needs a key."
    emit({"key": secret, **_document(key)}, [secret, remark], as_json)


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List all keys, revoked ones too."""
    with open_database(load_settings()) as database, database.connect() as connection:
        stored = read_keys(connection)
    columns = ["name", "created", "last used", "revoked", "requests/min", "tokens/min", "admin", "agents"]
    cells = [
        [key.name, *(None if at is None else f"{at:%Y-%m-%d %H:%M}" for at in (key.created_at, key.last_used_at, key.revoked_at)),
         key.requests_per_minute, key.tokens_per_minute, "yes" if key.admin else "no", ", ".join(key.agents) or "all"]
        for key in stored
    ]  # fmt: skip
    emit({"keys": [_document(key) for key in stored]}, [listed(columns, cells)], as_json)


@app.command("revoke")
def revoke(name: NameArgument, as_json: JsonOption = False) -> None:
    """Revoke a key, in every gateway within a second."""
    with open_database(load_settings()) as database, database.connect() as connection:
        revoked_at = revoke_key(connection, name, utc_now())
    document = {"name": name, "revokedAt": revoked_at.isoformat()}
    emit(document, [f"{name} is revoked."], as_json)


def _document(key: ClientKey) -> dict[str, Any]:
    times = {"createdAt": key.created_at, "lastUsedAt": key.last_used_at, "revokedAt": key.revoked_at}
    limits = {"requestsPerMinute": key.requests_per_minute, "tokensPerMinute": key.tokens_per_minute}
    return {
        "name": key.name,
        **{name: None if at is None else at.isoformat() for name, at in times.items()},
        "limits": limits,
        "admin": key.admin,
        "agents": list(key.agents),
    }
