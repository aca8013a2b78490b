"""A base model of a few bytes, and versions registered on it whose checkpoints are whole."""

import json
import struct
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from babylon_rl.files.durable import sha256
from babylon_rl.market.simulation.games import Game
from babylon_rl.models.checkpoints import MANIFEST, Manifest, RemoteCheckpoint, base_identity, publish, write_document
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database

NOW = datetime(2025, 11, 20, 12)
MakeVersion = Callable[..., str]


def write_tensors(path: Path, *values: float) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values))


def simulated(connection: Connection) -> None:
    """Marks the hour that all versions of ``make_version`` were trained on as simulated."""
    connection.execute(
        'INSERT INTO babylon_rl.simulated_hours ("window", seed, "ownMarket", "createdAt") VALUES (%s, 0, true, %s)',
        ["2025-11-20T10:00", NOW],
    )
    connection.commit()


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny-base"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text('{"chat_template": "x"}')
    write_tensors(directory / "model.safetensors", 1.0, 2.0)
    return directory


@pytest.fixture
def settings(settings: Settings, base_dir: Path) -> Settings:
    return settings.model_copy(update={"local_base_model": str(base_dir), "benchmark_markets": 12})


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.connect() as opened:
        yield opened


@pytest.fixture
def make_version(connection: Connection, settings: Settings, base_dir: Path, tmp_path: Path) -> MakeVersion:
    """``make_version("v1.0.0", parent=None, status="ready")``: registers a version with its batch; returns the batch id.

    ``game`` is the one of its training calls. With ``service=URL`` its weights are at a training service there, and agents call
    ``VERSION@service``.
    """

    def make(
        version: str, *, parent: str | None = None, status: str = "ready", base_model: str = "tiny-base", service: str | None = None,
        game: Game | None = None,
    ) -> str:  # fmt: skip
        batch, staging, final = f"batch-{version}", tmp_path / f"making-{version}", settings.home / "checkpoints" / version
        staging.mkdir()
        if service is not None:
            asked = f"{version}@service"
            pointer = RemoteCheckpoint(
                service=service, model="m", step=1, artifact="m:step1", inference_name=asked, inference_url=service
            )  # fmt: skip
            write_document(staging, pointer)
        else:
            write_tensors(staging / "adapter_model.safetensors", float(version[-1]))
            (staging / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        asked_as = {} if game is None else {"prompt_version": game.prompt_version, "action_grammar": game.grammar}
        base = base_identity(base_dir, "tiny-base")
        publish(staging, final, Manifest(version=version, base=base, created_at="2025-11-20", batch_id=batch, **asked_as))
        deployed = NOW if status == "deployed" else None
        connection.execute(
            'INSERT INTO babylon_rl.batches ("batchId", "baseModel", "backend", "version", "seed", "state", "createdAt", "heartbeatAt")'
            " VALUES (%s, %s, 'cpu', %s, 0, 'completed', %s, %s)",
            [batch, base_model, version, NOW, NOW],
        )
        connection.execute(
            'INSERT INTO trained_models (id, "modelId", version, "baseModel", "trainingBatch", status, "deployedAt", "storagePath",'
            ' "evalMetrics", "createdAt", "updatedAt") VALUES (%s, %s, %s, %s, %s, %s, %s, %s, \'{"training": {"loss": 1}}\', %s, %s)',
            [version, f"babylon-agent-{version}", version, base_model, batch, status, deployed, str(final), NOW, NOW],
        )
        connection.execute(
            'INSERT INTO babylon_rl.model_lineage ("version", "parentVersion", "baseModel", "backend", "batchId", "checkpointPath",'
            ' "manifestSha", "windows", "metrics", "createdAt") VALUES (%s, %s, %s, \'cpu\', %s, %s, %s, %s, \'{}\', %s)',
            [version, parent, base_model, batch, str(final), sha256(final / MANIFEST), ["2025-11-20T10:00"], NOW],
        )
        connection.commit()
        return batch

    return make
