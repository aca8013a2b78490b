"""docs/reference/compatibility.md is what is measured here; the column of vLLM is measured by `make test-vllm`."""

import re
from pathlib import Path

import httpx2
import pytest
import torch
from starlette.testclient import TestClient

from babylon_rl.models.policy import Policy
from babylon_rl.models.server import create_app
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving import test_python_clients
from babylon_rl_tests.serving.compatibility import IGNORED, MESSAGES, PAGE, PASSED_ON, PROBES, asking, check_column, outcome
from babylon_rl_tests.serving.gateways import running_gateway
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.tiny_model import tiny_base

__all__ = ["tiny_base"]
pytestmark = pytest.mark.slow  # torch is imported


def test_serve_model_does_with_each_parameter_what_the_page_says(tiny_base: Path) -> None:
    with TestClient(create_app(Policy.load(tiny_base, dtype=torch.float32))) as client:
        ask = asking(lambda body: client.post("/v1/chat/completions", json=body))
        measured = {name: outcome(probe, ask) for name, probe in PROBES.items()}
    check_column("`serve model`", measured)
    assert IGNORED not in measured.values()


def test_the_gateway_does_with_each_parameter_what_the_page_says(settings: Settings, database: Database, upstream: ModelStandIn) -> None:
    measured = {}
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        for name, probe in PROBES.items():
            body = {"model": "base", "messages": MESSAGES} | probe.fields
            assert httpx2.post(f"{gateway.url}/chat/completions", json=body, timeout=30).status_code == 200
            measured[name] = PASSED_ON if upstream.seen[-1].items() >= probe.fields.items() else IGNORED
    check_column("gateway", measured)


def test_the_page_s_clients_do_what_their_test_asks_of_them() -> None:
    marks = test_python_clients.test_a_client_library_works_unchanged.pytestmark
    (cases,) = (mark.args[1] for mark in marks if mark.args and "client" in mark.args[0])
    lines = PAGE.read_text().partition("| client | text |")[2].splitlines()[2:]
    shown = [[cell == "yes" for cell in line.strip("| ").split(" | ")[1:]] for line in lines[: lines.index("")]]
    assert shown == [[name in expected for name in ("text", "streamed", "again", "tools", "typed")] for _, _, expected in cases]


def test_every_test_that_the_page_names_for_a_client_is_there() -> None:
    named = re.findall(r"^\| ([^|]+) \| [^|]+ \| `(\w+)` in `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(named) > 5
    for client, test, file in named:
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{client}: {test} is not in {file}"
