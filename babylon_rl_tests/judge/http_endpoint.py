"""An HTTP endpoint that plays a script, in the event loop of the test that asks it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """``hangs_up``: nothing is sent; ``cut``: half of the body; ``hangs``: nothing until the client has gone."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hangs_up: bool = False
    cut: bool = False
    hangs: bool = False
    delay_s: float = 0.0


def completion(text: str | None = "fine", finish: str | None = "stop", usage: Any = None, **message: Any) -> Answer:
    """A chat completion in OpenAI's shape."""
    document = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100} if usage is None else usage,
    }
    return Answer(body=json.dumps(document).encode())


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's shape; ``headers`` in Python's spelling."""
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Endpoint:
    """Answers with the script's entries in turn, the last one for ever. ``seen`` are the bodies asked, with path and headers."""

    script: list[Answer]
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    open: dict[asyncio.StreamWriter, Any] = field(default_factory=dict)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open[writer] = asyncio.current_task()
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            del self.open[writer]

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.seen.append({"path": first.split()[1], "headers": headers, **body})
        answer = self.script[min(len(self.seen), len(self.script)) - 1]
        self.asked.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(answer.delay_s)
        self.in_flight -= 1
        if answer.hangs:
            await reader.read()
            self.gone.set()
        if answer.hangs or answer.hangs_up:
            return False
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        writer.write(f"HTTP/1.1 {answer.status} X\r\n{head}content-length: {len(answer.body)}\r\n\r\n".encode())
        writer.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
        await writer.drain()
        return not answer.cut


@asynccontextmanager
async def endpoint(*script: Answer) -> AsyncIterator[Endpoint]:
    """An endpoint on a free loopback port."""
    played = Endpoint(list(script))
    server = await asyncio.start_server(played.serve, "127.0.0.1", 0)
    played.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield played
    finally:
        server.close()
        left = dict(played.open)
        for writer in left:
            writer.close()
        await asyncio.gather(*left.values())
