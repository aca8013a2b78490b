"""Command ``export``: training data for other tools, to a directory or an fsspec URL.

It changes nothing in the database.
"""

from typing import Annotated, Literal

import typer

from babylon_rl.cli.options import FromOption, ToOption, refuse_future
from babylon_rl.cli.output import JsonOption, Table, emit, listed, progress_of_parts, say
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database
from babylon_rl.training.export import ExportedRows, export_windows
from babylon_rl.training.export.hours import Selection, Splits, complete_windows
from babylon_rl.windows import utc_now

app = typer.Typer()


@app.command("export")
def export(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A directory, made where it is absent, or any fsspec URL (s3://...).")],
    form: Annotated[
        Literal["jsonl", "parquet", "hf", "archive"],
        typer.Option("--format", help="JSONL of ART messages, Parquet, a Hugging Face dataset, or an archive by window."),
    ],
    first: FromOption = None,
    end: ToOption = None,
    split: Annotated[float, typer.Option(metavar="SHARE", help="Share of the windows in train; the rest is test.")] = 0.9,
    validation: Annotated[float, typer.Option(metavar="SHARE", help="Share of the windows in validation.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed splits the windows in another way.")] = 0,
    only_scored: Annotated[bool, typer.Option("--only-scored", help="Leave out episodes without a score.")] = False,
    only_trainable: Annotated[
        bool, typer.Option("--only-trainable", help="Leave out what carries no signal, too: groups without spread, empty responses.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Take episodes with too few steps, and quarantined hours, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a directory that holds other files; they stay.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write training data for other tools. LLM calls as served, with scores. The splits are by window."""
    settings, now = load_settings(), utc_now()
    splits = Splits(split, validation, seed)
    selection = Selection(everything, only_scored, only_trainable)
    if first is not None:
        refuse_future(first, now)
    with open_database(settings, prepare=False) as database, database.connect() as connection, progress_of_parts() as tell:
        windows, unfinished = complete_windows(connection, first, end, now)
        # The export reads in transactions of its own, which may take long.
        connection.rollback()
        say(*(f"{window} has not ended and is left out." for window in unfinished))
        done = export_windows(connection, windows, directory, form, settings, splits=splits, selection=selection, force=force, tell=tell)
    _remark(done, bool(windows))
    document = {
        "files": list(done.files),
        "format": form,
        "records": done.records,
        "splits": {name: vars(counts) for name, counts in done.splits.items()},
        "leftOut": done.left_out,
        "synthetic": done.synthetic,
        "staleWindows": done.stale,
    }
    emit(document, _parts(done), as_json)


def _remark(done: ExportedRows, any_rows: bool) -> None:
    unscored = sum(counts.windows - counts.scored for counts in done.splits.values())
    if not any_rows:
        say("No complete hour here holds a trajectory: nothing was written.")
    elif not done.files:
        say("These hours hold no LLM call to export: nothing was written. `babylon-rl windows` says what they hold.")
    if unscored:
        say(
            f"{unscored} hours have no scores; their score, advantage and rank are null. `babylon-rl score` judges hours that have a group."
        )
    if done.stale:
        say(f"{done.stale} hours have changed since they were scored; `babylon-rl windows` shows their state.")
    if done.synthetic:
        say(f"{done.synthetic} trajectories recorded no prompt and give no record (docs/howto/recording.md).")
    say(*(f"{number} LLM calls are left out: {reason}." for reason, number in done.left_out.items()))


def _parts(done: ExportedRows) -> list[Table | str]:
    if not done.files:
        return []
    rows = [[name, counts.windows, counts.scored, counts.episodes, counts.records] for name, counts in done.splits.items()]
    shown = done.files if len(done.files) <= 10 else (*done.files[:8], f"... {len(done.files) - 9} more ...", done.files[-1])
    return [listed(["split", "windows", "scored", "episodes", "LLM calls"], rows), *shown]
