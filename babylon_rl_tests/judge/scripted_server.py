"""The scripted judge for tests, on a free loopback port: in a thread (fast) or in a process; and what to ask it."""

import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2

from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import OVERRIDE_HEADER, running

NONCE = "4f1a9c"
START_S = 120


class Judge:
    """A client of one scripted judge; ``url`` is the base URL for OpenAI clients."""

    def __init__(self, url: str, client: httpx2.Client) -> None:
        self.url = url
        self.client = client

    def post(self, messages: Sequence[Mapping[str, Any]], timeout_s: float = 20.0, **changes: Any) -> httpx2.Response:
        """One request; ``changes`` are settings for it alone."""
        body = {"model": "scripted", "messages": list(messages)}
        headers = {OVERRIDE_HEADER: json.dumps(changes)} if changes else {}
        content = json.dumps(body)  # in ASCII, so that halves of surrogate pairs arrive as a client may send them
        return self.client.post(f"{self.url}/chat/completions", content=content, headers=headers, timeout=timeout_s)

    def text(self, messages: Sequence[Mapping[str, Any]], **changes: Any) -> str:
        """The content of an answer that succeeds."""
        answer = self.post(messages, **changes)
        assert answer.status_code == 200, answer.text
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content

    def scores(self, messages: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, float]:
        """Score by id, in the order of the answer."""
        entries = json.loads(self.text(messages, **changes))["scores"]
        return {entry.get("id", entry.get("trajectory_id")): entry["score"] for entry in entries}

    def stats(self) -> dict[str, Any]:
        """What was asked since the start or the last reset."""
        found: dict[str, Any] = self.client.get(self.url.removesuffix("/v1") + "/stats").json()
        return found

    def reset(self, **changes: Any) -> None:
        """Forget what was asked, and be as at the start but for the changes."""
        answer = self.client.post(self.url.removesuffix("/v1") + "/reset", json=changes)
        assert answer.status_code == 200, answer.text


@contextmanager
def judging(judge: ScriptedJudge | None = None) -> Iterator[Judge]:
    """A judge in a thread of this process."""
    with running(judge or ScriptedJudge()) as url, httpx2.Client(verify=False) as client:  # certificates take a while to read
        yield Judge(url, client)


@contextmanager
def judging_process(**settings: Any) -> Iterator[Judge]:
    """A judge in a process of its own, with these settings."""
    command = [sys.executable, "-m", "babylon_rl_tests.scripted_judge", "--port", "0", json.dumps(settings)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert select.select([process.stderr], [], [], START_S)[0], "the judge says nothing"
            line = process.stderr.readline()
            found = re.search(r"http://\S+/v1", line)
            assert found, line
            with httpx2.Client() as client:
                yield Judge(found[0], client)
        finally:
            process.send_signal(signal.SIGINT)


def asked(*texts: str, nonce: str = NONCE, before: str = "", told: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
    """Messages that show these episodes, with ids e0, e1, ...; nothing is escaped. ``told`` stands before the block of that place."""
    blocks = [
        f'{(told or {}).get(place, "")}\n<episode nonce="{nonce}" id="e{place}">\n{text}\n</episode nonce="{nonce}">'
        for place, text in enumerate(texts)
    ]
    user = "\n".join([before, *blocks, f"Score the {len(texts)} episodes."])
    return [{"role": "system", "content": "You judge trading agents."}, {"role": "user", "content": user}]


def asked_by_art(*texts: str) -> list[dict[str, Any]]:
    """Messages in the format of ART's RULER, with ids 1, 2, ..."""
    blocks = [
        f'<trajectory id="{number}">\n' + json.dumps([{"role": "assistant", "content": text}]) + "\n</trajectory>"
        for number, text in enumerate(texts, start=1)
    ]
    return [{"role": "system", "content": "Score them."}, {"role": "user", "content": "Trajectories:\n\n" + "\n\n".join(blocks)}]
