"""A stand-in for Weights & Biases over HTTP: runs with their history, files and artifacts, as far as the real client asks for them."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# What wandb 0.25 looks up before it sends an artifact.
from babylon_rl_tests.http_stand_in import Handler, served

ARTIFACT_FIELDS = (
    "entityName", "projectName", "runName", "artifactTypeName", "artifactCollectionName", "digest", "digestAlgorithm", "description",
    "aliases", "tags", "metadata", "historyStep", "enableDigestDeduplication", "ttlDurationSeconds", "clientID", "sequenceClientID",
)  # fmt: skip


@dataclass
class Service:
    """``history`` holds the logged rows of each run by name, ``files`` what was uploaded by path, ``keys`` the credentials shown.

    The operations in ``refused`` are answered by an error; the files of artifacts in ``corrupted`` are given back with another byte.
    """

    url: str = ""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    resumed: int = 0
    refused: set[str] = field(default_factory=set)
    corrupted: set[str] = field(default_factory=set)

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The service's whole answer to one operation."""
        named = re.search(r"(?:query|mutation)\s+(\w+)|{\s*(\w+)", query)  # some operations of wandb 0.25 have no name
        operation = "" if named is None else (named[1] or named[2].capitalize())
        if operation in self.refused:
            return {"data": None, "errors": [{"message": f"{operation}: the storage of this account is full"}]}
        upload = {"uploadUrl": f"{self.url}/up/manifest", "uploadHeaders": []}
        node = {"id": "f1", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json", **upload}
        answers = {
            "RunResumeStatus": lambda: {"model": self._resume(given["name"])},
            "UpsertBucket": lambda: {"upsertBucket": {"bucket": self._run(given), "inserted": True}},
            "Viewer": lambda: {
                "viewer": {"id": "u1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            },
            "GetDefaultEntity": lambda: {"viewer": {"id": "u1", "entity": "me"}},
            "ServerFeaturesQuery": lambda: {"serverInfo": {"features": []}},  # wandb 0.25 ends where this is not answered
            "InputFields": lambda: {"TypeInfo": {"inputFields": [{"name": name} for name in ARTIFACT_FIELDS]}},
            "ArtifactType": lambda: {"project": {"artifact": None}},
            "CreateArtifact": lambda: {
                "createArtifact": {"artifact": {"id": "a1", "state": "PENDING", "artifactSequence": {"id": "s1", "latestArtifact": None}}}
            },
            "CreateArtifactManifest": lambda: {"createArtifactManifest": {"artifactManifest": {"id": "m1", "file": node}}},
            "UpdateArtifactManifest": lambda: {"updateArtifactManifest": {"artifactManifest": {"id": "m1", "file": node}}},
            "CreateArtifactFiles": lambda: {"createArtifactFiles": {"files": {"edges": self._places(given)}}},
            "CommitArtifact": lambda: {"commitArtifact": {"artifact": {"id": "a1", "digest": "d"}}},
            "ArtifactByID": lambda: {"artifact": self._artifact()},
            "ArtifactMembershipByName": lambda: {"project": {"artifactCollectionMembership": self._membership()}},
            "FetchArtifactManifest": lambda: {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/up/manifest"}}}},
            "GetArtifactMembershipFileUrls": lambda: {
                "project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": self._stored()}}}
            },
            "CreateRunFiles": lambda: {
                "createRunFiles": {
                    "runID": "run1",
                    "uploadHeaders": [],
                    "files": [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in given["files"]],
                }
            },
        }
        return {"data": answers.get(operation, dict)()}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Rows of history and the newest summary."""
        parts = body.get("files", {})
        self.history.setdefault(run, []).extend(json.loads(line) for line in parts.get("wandb-history.jsonl", {}).get("content", []))
        for line in parts.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(line)

    def _resume(self, name: str) -> dict[str, Any]:
        rows = self.history.get(name)
        project = {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "me"}, "bucket": None}
        if rows is None:
            return project
        self.resumed += 1
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail, "eventsTail": "[]"}
        plain = {"id": "run1", "name": name, "displayName": "leaderboard", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
        return project | {"bucket": {**counts, **plain, "summaryMetrics": json.dumps(self.summary)}}

    def _run(self, given: dict[str, Any]) -> dict[str, Any]:
        self.history.setdefault(given["name"], [])
        project = {"id": "p1", "name": given["project"], "entity": {"id": "e1", "name": "me"}}
        named = {"id": "run1", "name": given["name"], "displayName": "leaderboard", "description": "", "config": "{}", "sweepName": None}
        return {**named, "historyLineCount": len(self.history[given["name"]]), "project": project}

    def _artifact(self) -> dict[str, Any]:
        project = {"id": "p1", "internalId": "p1", "name": "p", "entity": {"name": "me"}}
        sequence = {"__typename": "ArtifactSequence", "name": "a", "project": project}
        plain = {
            "description": None,
            "metadata": "{}",
            "tags": [],
            "historyStep": None,
            "commitHash": None,
            "updatedAt": None,
            "aliases": [],
        }
        size = {"size": 1, "fileCount": 1, "digest": "d", "digestAlgorithm": "MANIFEST_MD5", "createdAt": "2025-11-01T00:00:00"}
        life = {"ttlDurationSeconds": -1, "ttlIsInherited": True, "state": "COMMITTED", "versionIndex": 0}
        return {"__typename": "Artifact", "id": "a1", "artifactSequence": sequence, "artifactType": {"name": "model"}} | plain | size | life

    def _membership(self) -> dict[str, Any]:
        artifact = self._artifact()
        collection = artifact["artifactSequence"]
        plain = {"id": "c1", "versionIndex": 0, "createdAt": "2025-11-01T00:00:00", "aliases": []}
        return {"__typename": "ArtifactCollectionMembership", "artifactCollection": collection, "artifact": artifact} | plain

    def _stored(self) -> dict[str, Any]:
        names = [path.removeprefix("artifact/") for path in self.files if path.startswith("artifact/")]
        edges = [{"node": {"__typename": "File", "name": name, "directUrl": f"{self.url}/up/artifact/{name}"}} for name in names]
        return {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}

    def _places(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = given.get("input", given).get("artifactFiles") or given.get("files") or []
        common = {"uploadHeaders": [], "storagePath": None, "uploadMultipartUrls": None, "artifact": {"id": "a1"}}
        names = [one["name"] for one in wanted]
        return [{"node": {"id": n, "name": n, "displayName": n, "uploadUrl": f"{self.url}/up/artifact/{n}", **common}} for n in names]


@contextmanager
def weights_and_biases() -> Iterator[Service]:
    """The stand-in on a free port, for as long as the block lasts."""
    service = Service()

    class Answers(Handler):
        def do_POST(self) -> None:
            body = json.loads(self._content())
            service.keys.add(self.headers.get("Authorization", ""))
            if self.path == "/graphql":
                self._send(service.graphql(body["query"], body.get("variables") or {}))
            else:
                service.stream(self.path.split("/")[-2], body)
                self._send({"exitcode": None, "limits": {}})

        def do_GET(self) -> None:
            path = self.path.removeprefix("/up/")
            self.answer(service.files[path] + b"!" * (path.removeprefix("artifact/") in service.corrupted))

        def do_PUT(self) -> None:
            service.files[self.path.removeprefix("/up/")] = self._content()
            self._send({})

        def _content(self) -> bytes:
            raw = self.body()
            return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw

        def _send(self, document: dict[str, Any]) -> None:
            self.answer(json.dumps(document).encode(), content_type="application/json")

    with served(Answers) as service.url:
        yield service
