"""Commands ``serve model``, ``models export`` and ``models upload``: versions as servers and files."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.batches import model_document, models
from babylon_rl.cli.output import JsonOption, emit, say
from babylon_rl.cli.serve import serve
from babylon_rl.errors import ExportError, ModelUnavailable, UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.windows import utc_now

if TYPE_CHECKING:
    from babylon_rl.store.registry import Model

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A registered version, such as v1.0.0.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    serve.command("model")(serve_model)
    models.command("export")(export)
    models.command("upload")(upload)
    if all(group.typer_instance is not serve for group in app.registered_groups):
        app.add_typer(serve, name="serve")


def serve_model(
    version: Annotated[str, typer.Argument(help="A version such as v1.0.0, or base.")] = "base",
    host: Annotated[str, typer.Option(help="Where to listen. Off loopback it is open to the network, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8000,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: OMP_NUM_THREADS, or all cores, at most 4.", min=1)] = None,
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
    if version != server.BASE_MODEL_NAME:
        _refuse_remote(version, checkpoint)
    # The port is taken before the model loads: a port in use is reported at once.
    bound = server.bind(host, port)
    set_threads(threads)
    base_dir = packaged.base_model_dir(settings)
    if version != server.BASE_MODEL_NAME:
        checkpoints.verify(checkpoint, base_dir)
    policy = Policy.load(base_dir)
    if version != server.BASE_MODEL_NAME:
        policy.add_adapter(version, checkpoint)
    server.serve(policy, bound, _announce)


def _refuse_remote(version: str, checkpoint: Path) -> None:
    from babylon_rl.models.checkpoints import read_remote

    remote = read_remote(checkpoint)
    if remote is not None:
        raise ModelUnavailable(
            f"The weights of {version} are not on this machine: {remote.service} serves them as {remote.inference_name} at "
            f"{remote.inference_url}, and nothing needs to be started."
        )


def export(
    version: VersionArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    merged: Annotated[bool, typer.Option("--merged", help="Base and adapter as one model, instead of the adapter.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version's files for vLLM and others, after they were loaded again and compared with the checkpoint."""
    from babylon_rl.training.exporting_models import export_version

    settings = load_settings()
    model = _registered(settings, version)
    exported = export_version(model, directory.absolute(), settings, merged=merged)
    document = {
        "version": model.version, "directory": str(exported.directory), "merged": exported.merged, "files": list(exported.files),
        "kl": exported.kl,
    }  # fmt: skip
    # The command that serves these files: a merged model alone, an adapter beside its base.
    serves = f"vllm serve {exported.directory}"
    if not merged:
        serves = f"vllm serve {model.base_model} --enable-lora --lora-modules {model.version}={exported.directory}"

    def render(out: Any) -> None:
        out.print(f"{model.version} is in {exported.directory} ({len(exported.files)} files); loaded again, it is", markup=False)
        out.print(f"{exported.kl:.2g} nats a token away from the checkpoint. Serve it with `{serves}`.", markup=False)

    emit(document, render, as_json)


def upload(version: VersionArgument, as_json: JsonOption = False) -> None:
    """Bring a version's checkpoint to MODEL_STORAGE_URL, and with WANDB_API_KEY into Weights & Biases as an artifact."""
    from babylon_rl.models.checkpoints import read_remote, verify
    from babylon_rl.store.batches import own_transaction
    from babylon_rl.store.database import open_database
    from babylon_rl.store.registry import note_artifact, note_upload
    from babylon_rl.training.artifacts import log_artifact
    from babylon_rl.training.uploading import upload_checkpoint
    from babylon_rl.training.wandb_process import Sent, refusal

    settings = load_settings()
    if settings.model_storage_url is None and refusal(settings) is not None:
        raise UsageError("There is nowhere to upload to: set MODEL_STORAGE_URL, or WANDB_API_KEY.")
    model = _registered(settings, version)
    if model.foreign or model.training_batch is None:
        raise UsageError(f"{model.version} was made by another producer, and its files are not known here.")
    directory = Path(model.checkpoint or model.storage_path)
    if model.pruned_at is not None and not directory.is_dir():
        raise ModelUnavailable(f"{model.version} was pruned on {model.pruned_at:%Y-%m-%d}: its files are not here any more.")
    verify(directory)
    remote = read_remote(directory)
    with open_database(settings) as database, database.connect(autocommit=True) as connection:
        if settings.model_storage_url is not None:
            url = upload_checkpoint(directory, settings.model_storage_url)
            with own_transaction(connection):
                note_upload(connection, model.training_batch, url, utc_now())
            say(f"{model.version} is at {url}.")
        if remote is not None:
            say(f"The weights of {model.version} are an artifact of the training service already: {remote.artifact}.")
        sent = log_artifact(directory, settings) if remote is None else Sent("")
        if remote is None:
            say(sent.words)
        if sent.link is not None and settings.wandb_mode != "online":
            say(f"An artifact only once that is synced, so none is noted with {model.version}.")
        elif sent.link is not None:
            artifact = str((sent.answer or {}).get("artifact"))
            with own_transaction(connection):
                note_artifact(connection, model.training_batch, artifact, utc_now())
        elif remote is None and refusal(settings) is None:
            raise ExportError(f"{model.version} could not be logged as an artifact: {sent.words}")
    model = _registered(settings, version)
    emit(model_document(model), lambda out: None, as_json)


def _registered(settings: Settings, version: str) -> "Model":
    from babylon_rl.store.database import open_database
    from babylon_rl.store.registry import read_models
    from babylon_rl.training.exporting_models import find_version

    with open_database(settings, prepare=False) as database, database.connect() as connection:
        return find_version(read_models(connection), version)


def _announce(line: str) -> None:
    bound = json.loads(line)
    print(
        f"Serving {', '.join(bound['models'])} on http://{bound['host']}:{bound['port']}/v1. Ctrl-C ends it.", file=sys.stderr, flush=True
    )
