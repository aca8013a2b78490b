"""An admin API on a real socket, a stand-in of Dagster's webserver, and a plain HTTP client."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pydantic import SecretStr

from babylon_rl.http_server import in_thread, uvicorn_server
from babylon_rl.serving.admin_api import AdminApi, create_app
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.http_stand_in import Handler, served


@dataclass
class DagsterStandIn:
    """Answers of a webserver whose runs stay queued; ``launched`` holds the job and the tags of each, ``selected`` its assets."""

    url: str = ""
    launched: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    selected: list[list[str] | None] = field(default_factory=list)
    partitions: list[str] = field(default_factory=list)
    refuses_launches: bool = False
    fault: str | None = None

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "runsOrError" in query:
            wanted = variables["filter"]
            tags = {tag["key"]: tag["value"] for tag in wanted["tags"]}
            live = [job for job, own in self.launched if job == wanted["pipelineName"] and tags.items() <= own.items()]
            return {"runsOrError": {"__typename": "Runs", "results": [{"runId": str(uuid4())} for _ in live]}}
        if "addDynamicPartition" in query:
            self.partitions.append(variables["key"])
            return {"addDynamicPartition": {"__typename": "AddDynamicPartitionSuccess"}}
        if self.refuses_launches:
            return {"launchRun": {"__typename": "PythonError", "message": "no code location"}}
        params = variables["params"]
        tags = {tag["key"]: tag["value"] for tag in params["executionMetadata"]["tags"]}
        self.launched.append((params["selector"]["jobName"], tags))
        assets = params["selector"].get("assetSelection")
        self.selected.append(None if assets is None else [key["path"][-1] for key in assets])
        return {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": str(uuid4())}}}


@contextmanager
def dagster_stand_in() -> Iterator[DagsterStandIn]:
    """Serve a stand-in until the block ends."""
    stand_in = DagsterStandIn()

    class Answers(Handler):
        def do_POST(self) -> None:
            asked = json.loads(self.body())
            failed = {"data": None, "errors": [{"message": stand_in.fault}]}
            answer = {"data": stand_in.answer(asked["query"], asked["variables"])} if stand_in.fault is None else failed
            self.answer(json.dumps(answer).encode())

    with served(Answers) as stand_in.url:
        yield stand_in


@dataclass(frozen=True)
class Answer:
    """Status, headers and decoded body."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class AdminServer:
    """A running admin API at ``url``."""

    url: str
    api: AdminApi

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask(urllib.request.Request(self.url + path, headers=_named(headers)))

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return self._ask(urllib.request.Request(self.url + path, content, {"content-type": "application/json"} | _named(headers)))

    def upload(self, weights: bytes, version: str, metadata: Any) -> Answer:
        boundary = uuid4().hex
        fields = {"version": version, "metadata": metadata if isinstance(metadata, str) else json.dumps(metadata)}
        parts = [f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="model"; filename="adapter_model.safetensors"\r\n\r\n'
        content = "".join(parts).encode() + head.encode() + weights + f"\r\n--{boundary}--\r\n".encode()
        return self.post("/api/admin/training/upload-model", content, content_type=f"multipart/form-data; boundary={boundary}")

    def _ask(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, dict(response.headers), json.loads(response.read()))
        except urllib.error.HTTPError as refused:
            with refused:
                return Answer(refused.code, dict(refused.headers), json.loads(refused.read()))


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def running_admin(settings: Settings, database: Database, **options: Any) -> Iterator[AdminServer]:
    """Serve until the block ends."""
    settings = settings.model_copy(update={"database_url": SecretStr(database.url)})
    api = AdminApi(settings, database, **options)
    server = uvicorn_server(create_app(api), timeout_graceful_shutdown=2)
    with in_thread(server, "admin API", lambda: "The admin API did not start.") as url:
        yield AdminServer(url, api)
