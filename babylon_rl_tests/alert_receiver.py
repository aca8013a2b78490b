"""A real HTTP receiver of alerts, which can refuse, and answer too late."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """``bodies`` are those taken; ``status`` is the answer, ``delay_s`` passes before the receiver reads."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    status: int = 204
    delay_s: float = 0.0


@contextmanager
def alert_receiver() -> Iterator[Receiver]:
    """Serve a receiver until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.asked += 1
            if receiver.delay_s:
                time.sleep(receiver.delay_s)
                self.close_connection = True
                return
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if receiver.status < 300:
                receiver.bodies.append(body)
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/services/secret-token"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join(10)
