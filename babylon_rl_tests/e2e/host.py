"""Commands and servers of one machine of several, each a process with that machine's state directory."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylon_rl_tests.object_store import SECRET


@dataclass(frozen=True)
class Host:
    """Processes with a home of their own, which is empty at first."""

    home: Path
    variables: dict[str, str]

    def starts(self, *command: str, **how: Any) -> "subprocess.Popen[str]":
        self.home.mkdir(exist_ok=True)
        environment = {**os.environ, **self.variables, "BABYLON_RL_HOME": str(self.home)}
        return subprocess.Popen([sys.executable, *command], cwd=self.home, env=environment, text=True, stderr=subprocess.PIPE, **how)

    def runs(self, *command: str) -> str:
        process = self.starts(*command, stdout=subprocess.PIPE)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert SECRET not in out + err
        return str(out)

    def asks(self, *command: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.runs("-m", "babylon_rl", *command, "--json"))
        return document

    @contextmanager
    def serves(self, *command: str) -> Iterator[str]:
        """The address of a server that runs in the block."""
        process = self.starts("-m", "babylon_rl", "serve", *command, "--port", "0")
        try:
            said = ""
            while not (found := re.search(r"(?:Serving .*|Gateway|Admin page) on (http://127\.0\.0\.1:\d+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield found[1]
        finally:
            process.terminate()
            process.communicate()


def version_of_answer(gateway: str) -> str:
    """The version by which a gateway says that it answered an agent."""
    body = {"model": "auto", "user": "agent-1", "max_tokens": 4, "messages": [{"role": "user", "content": "Buy, sell or hold?"}]}
    _, headers = post(f"{gateway}/v1/chat/completions", body)
    return str(headers["x-babylon-version"])


def post(url: str, body: Any) -> tuple[dict[str, Any], Any]:
    """An answer's document and headers; an answer with an error fails the test."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer), answer.headers
    except urllib.error.HTTPError as refused:
        raise AssertionError(refused.read()) from refused
