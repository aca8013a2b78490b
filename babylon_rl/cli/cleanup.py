"""The command that removes what is kept for a time only."""

from dataclasses import asdict
from typing import Annotated

import typer

from babylon_rl.cli.output import Column, JsonOption, Table, emit, say
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database
from babylon_rl.windows import utc_now

app = typer.Typer()
PARTS = (
    Column("what", "name"),
    Column("number", "count"),
    Column("of", "unit"),
    Column("MB", lambda row: None if row["bytes"] is None else round(row["bytes"] / 1e6, 1)),
)
_FAILED = 3


@app.command("cleanup")
def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old checkpoints, caches, transcripts, gateway calls and run logs; exit code 3 when something cannot be removed."""
    from babylon_rl.automation.cleanup import ADVICE, clean_up

    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect(autocommit=True) as connection:
        parts = [asdict(part) for part in clean_up(connection, settings, utc_now(), dry_run=dry_run)]
    refused = [sentence for part in parts for sentence in part.pop("refused")]
    emit({"dryRun": dry_run, "parts": parts, "refused": refused}, [Table(PARTS, parts)], as_json)
    if dry_run:
        say("Nothing was removed: --dry-run.")
    for sentence in refused:
        say(sentence)
    if refused:
        say(ADVICE)
        raise typer.Exit(_FAILED)
