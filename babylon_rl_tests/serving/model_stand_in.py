"""An OpenAI-compatible server on a real socket that answers well or badly, as its ``behaviour`` for a model says."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WORDS = ("hold ", "your ", "position")
JSON_HEAD = "HTTP/1.1 {} X\r\ncontent-type: {}\r\ncontent-length: {}\r\n{}\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def completion(model: str, words: tuple[str, ...] = WORDS, **more: Any) -> dict[str, Any]:
    """A whole answer of those words, with logprobs."""
    tokens = [
        {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": [], "token_id": 7 + place} for place, word in enumerate(words)
    ]
    message = {"role": "assistant", "content": "".join(words), **more}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": tokens}}
    usage = {"prompt_tokens": 11, "completion_tokens": len(words), "total_tokens": 11 + len(words)}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


def chunk(model: str, delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One event of a stream."""
    logprobs = (
        {"content": [{"token": delta["content"], "logprob": -0.5, "bytes": None, "top_logprobs": []}]} if "content" in delta else None
    )
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class ModelStandIn:
    """``behaviour[model]`` is one of the faults below, by default none; that of "poison" is for requests with this word.

    ``seen`` are the bodies, ``gone`` counts clients that left.
    """

    def __init__(self) -> None:
        self.behaviour: dict[str, str] = {}
        self.seen: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.open = self.gone = 0
        self.pause_s = 0.0
        self.port = 0
        self.answer: Callable[[str], dict[str, Any]] = completion

    @property
    def url(self) -> str:
        """The address for LOCAL_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            self.open -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = next(int(line.partition(":")[2]) for line in head.splitlines() if line.lower().startswith("content-length"))
        body = json.loads(await reader.readexactly(length))
        self.seen.append(body)
        poisoned = "poison" in str(body.get("messages", [])[-1:])
        model, fault = body["model"], self.behaviour.get("poison" if poisoned else body["model"], "")
        if fault == "hangs":
            await reader.read(1)
            raise ConnectionError
        if fault == "hangs up":
            return False
        if fault == "echo":
            said = next(line for line in head.splitlines() if line.lower().startswith("authorization"))
            self._write(writer, 401, "application/json", json.dumps({"error": {"message": f"no such key: {said}"}}).encode())
        elif fault.isdigit():
            extra = "retry-after: 7\r\n" if fault == "429" else ""
            self._write(writer, int(fault), "application/json", b'{"error": {"message": "no, sk-secretsecret"}}', extra)
        elif fault.startswith("refuses ") and fault.split()[1] in body:
            refusal = {"error": {"message": f"Unrecognized request argument supplied: {fault.split()[1]}"}}
            self._write(writer, 400, "application/json", json.dumps(refusal).encode())
        elif fault == "html":
            self._write(writer, 200, "text/html", b"<html>a proxy's page</html>")
        elif fault == "half body":
            document = json.dumps(self.answer(model)).encode()
            writer.write(JSON_HEAD.format(200, "application/json", len(document), "").encode() + document[: len(document) // 2])
            return False
        elif body.get("stream"):
            return await self._stream(reader, writer, model, fault, bool((body.get("stream_options") or {}).get("include_usage")))
        else:
            await asyncio.sleep(self.pause_s)
            blank = b"\n\n" if fault == "blank lines" else b""
            self._write(writer, 200, "application/json", blank + json.dumps(self.answer(model)).encode())
        await writer.drain()
        return True

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, fault: str, counts: bool) -> bool:
        writer.write(STREAM_HEAD)
        events = [chunk(model, {"role": "assistant"}), *(chunk(model, {"content": word}) for word in WORDS), chunk(model, {}, "stop")]
        if counts and fault != "no usage":
            last = (
                completion(model) | {"object": "chat.completion.chunk", "choices": []} | ({"usage": {}} if fault == "empty usage" else {})
            )
            events.append(b"data: " + json.dumps(last).encode() + b"\n\n")
        if fault == "reasons":
            events.insert(1, chunk(model, {"reasoning_content": "because"}))
        if fault == "error first":
            events = [b'data: {"error": {"message": "out of memory"}}\n\n']
        if fault == "nested":
            events = [b'data: {"choices": [{"delta": {"content": ' + b"[" * 100_000 + b"\n\n"]
        for place, event in enumerate(events):
            if (fault, place) in (("breaks first", 1), ("breaks later", 3)):
                return False
            if (fault, place) == ("half a chunk", 3):
                self._chunked(writer, event[: len(event) // 2])
                await writer.drain()
                return False
            if (fault, place) == ("stalls", 3):
                await reader.read(1)
                raise ConnectionError
            while (fault, place) == ("endless", 2):
                self._chunked(writer, chunk(model, {"content": "x" * 65536}))
                await writer.drain()
            # In two pieces that are no events of their own.
            for piece in (event[:20], event[20:]):
                self._chunked(writer, piece)
                await writer.drain()
                await asyncio.sleep(self.pause_s)
        if fault != "no done":
            self._chunked(writer, b"data: [DONE]\n\n")
        self._chunked(writer, b"")
        await writer.drain()
        return True

    def _chunked(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")

    def _write(self, writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, extra: str = "") -> None:
        writer.write(JSON_HEAD.format(status, kind, len(body), extra).encode() + body)


@contextmanager
def model_stand_in(port: int = 0) -> Iterator[ModelStandIn]:
    """A stand-in that serves in a thread of its own until the block ends."""
    stand_in, loop = ModelStandIn(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(stand_in.serve, "127.0.0.1", port), loop).result(10)
    stand_in.port = server.sockets[0].getsockname()[1]

    async def stop() -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield stand_in
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


if __name__ == "__main__":
    with model_stand_in(int(sys.argv[1])) as served:
        print(served.port, flush=True)
        sys.stdin.read()
