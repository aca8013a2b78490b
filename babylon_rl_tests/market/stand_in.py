"""A chat-completions endpoint whose answers are a function of the request: a model without the model. No answer is a 500."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from babylon_rl.models.grammar import language

Answer = Callable[[dict[str, Any]], str | None]


@dataclass
class StandIn:
    """``url`` of the endpoint and the requests that it has seen."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)


def by_seed(request: dict[str, Any]) -> str:
    """One of the schema's answers, chosen by the request's seed."""
    texts = language(request["response_format"]["json_schema"]["schema"])
    return texts[request["seed"] % len(texts)]


@contextmanager
def stand_in(answer: Answer = by_seed) -> Iterator[StandIn]:
    served = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            served.seen.append(request)
            text = answer(request)
            if text is None:
                self.send_error(500)
                return
            entries = [{"token": character, "logprob": -0.25, "token_id": ord(character)} for character in text]
            body = json.dumps({
                "model": request["model"], "choices": [{"message": {"content": text}, "logprobs": {"content": entries}}],
                "usage": {"prompt_tokens": 99, "completion_tokens": len(text)},
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
