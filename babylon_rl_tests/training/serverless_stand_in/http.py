"""The service over HTTP on loopback, with and without the prefix /v1, and the faults of a connection.

Under /stand-in lie its controls for tests that run it as a process: GET /stand-in/trained, POST /stand-in/set.
"""

import json
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from babylon_rl_tests.http_stand_in import Handler, served
from babylon_rl_tests.training.serverless_stand_in.chat import Chat, answer_chat
from babylon_rl_tests.training.serverless_stand_in.service import Service

WRONG_KEY = "wrong"
_MODEL = re.compile(r"/preview/models/([^/]+)")
_CHECKPOINTS = re.compile(r"/preview/models/([^/]+)/checkpoints")
_EVENTS = re.compile(r"/preview/training-jobs/([^/]+)/events")


@dataclass
class StandIn:
    """A served stand-in: its address, what it knows, and the model that answers chats (None: no chat)."""

    url: str
    service: Service
    chat: Chat | None


class Answers(Handler):
    """One request to ``stand_in``."""

    protocol_version = "HTTP/1.1"

    stand_in: StandIn

    def do_GET(self) -> None:
        path, query = self._request()
        service = self.stand_in.service
        if path == "/stand-in/trained":
            trained = [asdict(job) for job in service.trained()]
            self._answer(200, {"trained": trained, "jobs": len(service.jobs), "running": service.running()})
        elif service.read_faults:
            self._answer(service.read_faults.pop(0), {"error": {"message": "a fault of the stand-in"}})
        elif (found := _CHECKPOINTS.fullmatch(path)) is not None and found[1] in service.models:
            shown = [{"id": f"c{one.step}", "step": one.step, "metrics": one.metrics} for one in service.checkpoints(found[1])]
            self._page(shown[::-1] if query.get("order") == ["desc"] else shown, query)
        elif (found := _EVENTS.fullmatch(path)) is not None and (events := service.events(found[1])) is not None:
            self._page(events, query)
        else:
            self._answer(404, {"error": {"message": f"there is no {path}"}})

    def do_POST(self) -> None:
        path, _ = self._request()
        body = self._body()
        service = self.stand_in.service
        if self.headers.get("authorization", "").endswith(f" {WRONG_KEY}"):
            self._answer(401, {"error": {"message": f"the key {WRONG_KEY} is not known"}})
        elif path == "/preview/models":
            model = service.create_model(body)
            self._answer(200, {"id": model.id, "entity": model.entity, "project": model.project, "name": model.name,
                               "base_model": model.base_model, "run_id": "run-1"})  # fmt: skip
        elif path == "/preview/training-jobs":
            self._post_job(body)
        elif path == "/chat/completions" and self.stand_in.chat is not None:
            self._answer(200, answer_chat(self.stand_in.chat, body))
        elif path == "/stand-in/set":
            for name, value in body.items():
                setattr(service, name, value)
            self._answer(200, {})
        else:
            self._answer(404, {"error": {"message": f"there is no {path}"}})

    def do_DELETE(self) -> None:
        path, _ = self._request()
        whole, found = _MODEL.fullmatch(path), _CHECKPOINTS.fullmatch(path)
        if whole is not None and self.stand_in.service.models.pop(whole[1], None) is not None:
            self._answer(200, {})
            return
        if found is None:
            self._answer(404, {"error": {"message": f"there is no {path}"}})
            return
        deleted, missing = self.stand_in.service.delete_checkpoints(found[1], list(self._body()["steps"]))
        self._answer(200, {"deleted_count": deleted, "not_found_steps": missing})

    def _post_job(self, body: dict[str, Any]) -> None:
        service = self.stand_in.service
        fault = service.post_faults.pop(0) if service.post_faults else "none"
        if fault == "drop_before":
            self._drop()
        elif fault in ("429", "400", "500", "503"):
            waits = {"retry-after": service.retry_after()} if fault == "429" and service.retry_after is not None else {}
            self._answer(int(fault), {"error": {"message": "a fault of the stand-in"}}, waits)
        else:
            job = service.post_job(body)
            if fault == "drop_after":
                self._drop()
            elif fault == "reset_after":
                # The client's exception then holds no words at all.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._drop()
            elif fault == "500_after":
                self._answer(500, {"error": {"message": "a fault of the stand-in"}})
            elif fault == "garbled_after":
                self._answer(200, {"accepted": True})
            else:
                self._answer(200, {"id": job.id})

    def _request(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/v1")
        self.stand_in.service.requests.append((self.command, path))
        return path, parse_qs(parts.query)

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.body() or b"{}")
        return body

    def _page(self, entries: list[dict[str, Any]], query: dict[str, list[str]]) -> None:
        ids = [entry["id"] for entry in entries]
        after = query.get("after", [None])[0]
        left = entries[ids.index(after) + 1 :] if after in ids else entries
        most = int(query.get("limit", ["20"])[0])
        self._answer(200, {"object": "list", "data": left[:most], "has_more": len(left) > most})

    def _answer(self, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self.answer(json.dumps(document).encode(), status, content_type="application/json", **(headers or {}))

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()


@contextmanager
def standing_in(service: Service | None = None, chat: Chat | None = None, port: int = 0) -> Iterator[StandIn]:
    """Serve a stand-in on loopback while the block runs."""
    found = StandIn("", service or Service(), chat)

    class Bound(Answers):
        stand_in = found

    with served(Bound, port) as found.url:
        yield found
