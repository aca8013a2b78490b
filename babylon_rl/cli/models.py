"""Command group ``models``: the registry of versions, and versions as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from babylon_rl.cli import releases
from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed, say
from babylon_rl.errors import ExportError, ModelUnavailable, UsageError
from babylon_rl.files.durable import write_atomically
from babylon_rl.models.checkpoint_store import checkpoint_of, upload_checkpoint
from babylon_rl.models.checkpoints import load_manifest, model_card, read_remote, verify
from babylon_rl.reporting.plots import curve_panels
from babylon_rl.serving.status_shapes import ModelDocument
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import own_transaction
from babylon_rl.store.database import open_database
from babylon_rl.store.registry import Model, note_upload, read_models
from babylon_rl.training.curves import CURVES, overlaid, training_curves
from babylon_rl.training.export.model import export_version, find_version
from babylon_rl.training.tracking import record_artifact, refusal
from babylon_rl.types import BenchmarkReport
from babylon_rl.windows import utc_now

app = typer.Typer(name="models", help="The registry of versions.", invoke_without_command=True)
releases.register(app)
MODELS = (
    Column("version", "version"),
    Column("status", "shown_status"),
    Column("base", "base_model", wide=True),
    Column("parent", "parent_version"),
    Column("batch", "training_batch"),
    Column("P&L, $ an hour", lambda model: _interval(model, "pnl", "low", "high"), meaning="mean and 95 % interval"),
    Column(
        "against",
        lambda model: (
            (gain := _interval(model, "improvement", "improvementLow", "improvementHigh")) and f"{gain} {_measured(model)['reference']}"
        ),
        meaning="difference in the same markets, corrected for the gate's looks",
    ),
    Column("markets", lambda model: _measured(model).get("markets")),
    Column("gate", lambda model: (decision := _measured(model).get("decision")) and decision.replace("_", " ")),
    Column(
        "of the ceiling",
        lambda model: None if (share := _measured(model).get("ofCeiling")) is None else f"{100 * share:.0f} %",
        meaning="expected dollars, over those of the best play from the prompt",
    ),
    Column("hours", lambda model: len(model.windows), meaning="of its training"),
    Column("storage", "storage_path", wide=True),
)
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A registered version, such as v1.0.0.")]


@app.callback()
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every registered version, highest first; those of other producers are shown as foreign."""
    # The callback runs before `models export` and its like, too.
    if context.invoked_subcommand is not None:
        return
    from babylon_rl.evaluation.report import ceiling_words, stored_standing  # load numpy

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        versions = read_models(connection)
    if not versions:
        say("No model is registered yet. `babylon-rl train` makes the first; the base model is there without it, under the name base.")
    compared = next((model for model in versions if "pnl" in _measured(model)), None)
    row = {} if compared is None else {**_measured(compared), "model": compared.version}
    stands = ["", stored_standing(row), ceiling_words(row)] if row else []
    emit({"models": [ModelDocument.of(model) for model in versions]}, [Table(MODELS, versions), *stands], as_json)


def _measured(model: Model) -> Mapping[str, Any]:
    """The row of one of our versions in its benchmark report, with the gate's decision; empty before there is one."""
    measured = None if model.foreign else (model.eval_metrics or {}).get("benchmark")
    return measured or {}


def _interval(model: Model, mean: str, low: str, high: str) -> str | None:
    measured = _measured(model)
    if measured.get(mean) is None:
        return None
    return f"{measured[mean]:+.0f} [{measured[low]:+.0f}, {measured[high]:+.0f}]"


@app.command("export")
def export(
    version: VersionArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    merged: Annotated[bool, typer.Option("--merged", help="Base and adapter as one model, instead of the adapter.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version's files for vLLM and other servers. They are loaded again and compared with the checkpoint first."""
    settings = load_settings()
    model, report = _registered(settings, version)
    exported = export_version(model, directory.absolute(), settings, report, merged=merged)
    document = {"version": model.version, "directory": str(exported.directory)} | document_of(exported, "merged", "files", "kl")
    adapter = f"--served-model-name base --enable-lora --lora-modules {model.version}={exported.directory} --return-tokens-as-token-ids"
    serves = f"vllm serve {exported.directory}" if merged else f"vllm serve {model.base_model} {adapter}"
    lines = [
        f"{model.version} is in {exported.directory} ({len(exported.files)} files); loaded again, it is",
        f"{exported.kl:.2g} nats a token away from the checkpoint. Serve it with `{serves}`.",
    ]
    emit(document, lines, as_json)


@app.command("compare")
def compare(
    first: VersionArgument,
    second: VersionArgument,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="The picture. Default: in BABYLON_RL_HOME/plots.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the trainings of two versions step by step. Draws one over the other; `benchmark compare` compares what they earn."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        versions = read_models(connection)
        curves = training_curves(connection, [find_version(versions, version) for version in (first, second)])
    if missing := [version for version in (first, second) if not curves.get(version)]:
        raise UsageError(f"No optimizer step of {' and '.join(missing)} is on record: another producer or an earlier release trained it.")
    picture = curve_panels(f"Training of {first} and {second}, by optimizer step", overlaid(curves))
    path = plot or settings.home / "plots" / f"training-{first}-{second}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.png)
    lines = [
        [name, *(number for rows in curves.values() for number in _range(rows, name))]
        for name in CURVES
        if any(row[name] is not None for rows in curves.values() for row in rows)
    ]
    titles = ["", *(f"{version} {what}" for version in curves for what in ("first", "mean", "last"))]
    counted = ", ".join(f"{version} {len(rows)}" for version, rows in curves.items())
    document = {"steps": [row for rows in curves.values() for row in rows], "plot": str(path)}
    emit(document, [listed(titles, lines, f"Optimizer steps: {counted}"), f"\nplot  {path}"], as_json)


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> list[str | None]:
    values = [row[name] for row in rows if row[name] is not None]
    return [f"{value:.4g}" for value in (values[0], fmean(values), values[-1])] if values else [None] * 3


@app.command("card")
def card(version: VersionArgument) -> None:
    """Print a version's model card. Its data, its settings, and the benchmark's result once there is one."""
    settings = load_settings()
    model, report = _registered(settings, version)
    if model.foreign:
        raise UsageError(f"{model.version} was made by another producer, and its files are not known here.")
    typer.echo(model_card(load_manifest(checkpoint_of(model, settings)), report), nl=False)


@app.command("upload")
def upload(version: VersionArgument, as_json: JsonOption = False) -> None:
    """Upload a version's checkpoint to MODEL_STORAGE_URL. With WANDB_API_KEY also to Weights & Biases, as an artifact."""
    settings = load_settings()
    if settings.model_storage_url is None and refusal(settings) is not None:
        raise UsageError("There is nowhere to upload to: set MODEL_STORAGE_URL, or WANDB_API_KEY.")
    model, _ = _registered(settings, version)
    if model.foreign or model.training_batch is None:
        raise UsageError(f"{model.version} was made by another producer, and its files are not known here.")
    directory = checkpoint_of(model, settings)
    if model.pruned_at is not None and not directory.is_dir():
        raise ModelUnavailable(f"{model.version} was pruned on {model.pruned_at:%Y-%m-%d}: its files are not here any more.")
    verify(directory)
    remote = read_remote(directory)
    with open_database(settings) as database, database.connect(autocommit=True) as connection:
        if settings.model_storage_url is not None:
            url = upload_checkpoint(directory, settings.model_storage_url, then="then run this command again")
            with own_transaction(connection):
                note_upload(connection, model.training_batch, url, utc_now())
            say(f"{model.version} is at {url}.")
        if remote is not None:
            say(f"The weights of {model.version} are an artifact of the training service already: {remote.artifact}.")
        sent = record_artifact(connection, model, settings, utc_now())
        if remote is None:
            say(sent.words)
        if sent.link is not None and settings.wandb_mode != "online":
            say(f"An artifact only once that is synced, so none is noted with {model.version}.")
        # It was to be an artifact and is none. Without Weights & Biases, or for weights that it has already, that is no error.
        elif sent.link is None and remote is None and refusal(settings) is None:
            raise ExportError(f"{model.version} could not be logged as an artifact: {sent.words}")
    emit(ModelDocument.of(_registered(settings, version)[0]), [], as_json)


def _registered(settings: Settings, version: str) -> tuple[Model, BenchmarkReport | None]:
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        model = find_version(read_models(connection), version)
        return model, None if model.training_batch is None else read_report(connection, model.training_batch)
