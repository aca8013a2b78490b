"""Unchanged client libraries for Python against the gateway, with their own defaults; skipped where they are not installed.

`scripts/python_clients.sh` installs them in an environment of their own.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.acting_stand_in import SAID, acting_stand_in
from babylon_rl_tests.serving.gateways import add_version, rows, running_gateway, wait_for
from babylon_rl_tests.store.servers import ROOT

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("python_client.py")
PYTHON = ROOT / "build" / "clients" / "bin" / "python"
TYPED = {"ticker": "BTC", "amount": 3}
EVERYTHING = {"text": SAID, "streamed": SAID, "again": SAID, "tools": ["BTC is at 100"], "typed": TYPED}


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini"])
@pytest.mark.parametrize(
    ("client", "responses", "expected"),
    [
        ("openai_chat", "", {"text": SAID, "streamed": SAID}),
        ("openai_responses", "", {"text": SAID, "streamed": SAID, "typed": TYPED}),
        ("agents", "", EVERYTHING),
        ("pydantic_ai", "", EVERYTHING),
        ("langgraph", "no", EVERYTHING),
        ("langgraph", "yes", EVERYTHING),
        ("instructor", "", {"typed": TYPED}),
    ],
)
def test_a_client_library_works_unchanged(
    settings: Settings, database: Database, client: str, responses: str, expected: dict[str, Any], model: str
) -> None:
    if not PYTHON.exists():
        pytest.skip("no client libraries: scripts/python_clients.sh installs them")
    add_version(database, "v1.0.0")
    with (
        acting_stand_in() as upstream,
        running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database, writes=True) as gateway,
    ):
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(settings.home), "OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": "none",
            "MODEL": model, "RESPONSES": responses,
        }  # fmt: skip
        done = subprocess.run([PYTHON, SCRIPT, client], env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert {name: value.strip() if isinstance(value, str) else value for name, value in told.items()} == expected
        calls = len(upstream.seen)
        wait_for(lambda: rows(database, "SELECT count(*) AS n FROM llm_call_logs") == [{"n": calls}], "every call as a row")
        assert rows(database, "SELECT DISTINCT status FROM babylon_rl.gateway_calls") == [{"status": 200}]
