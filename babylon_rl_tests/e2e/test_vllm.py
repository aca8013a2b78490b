"""A real vLLM on the CPU, started by the lines of docs/howto/gateway.md, serves our base and adapters behind our gateway.

`make test-vllm` installs it and runs this file: in an environment of its own, as it pins other versions of this project's packages.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from msgspec.structs import replace

from babylon_rl.models.checkpoints import publish
from babylon_rl.models.encoding import encode_prompt
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.training.backends.cpu.policy import load_policy, served_logprobs, trainable
from babylon_rl.training.backends.cpu.trainer import CpuTrainer
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl_tests.serving.compatibility import PROBES, asking, check_column, outcome
from babylon_rl_tests.serving.gateways import add_version, rows, running_gateway, wait_for
from babylon_rl_tests.store.servers import ROOT, free_port
from babylon_rl_tests.tiny_model import make_manifest
from babylon_rl_tests.training.sequences import (
    BAD,
    GOOD,
    HOLD,
    SCHEMA,
    SELL,
    ignore,
    make_iteration,
    make_lesson,
    make_messages,
    make_sequence,
)

PROGRAMS = os.environ.get("BABYLON_RL_VLLM")  # the directory of the program vllm
pytestmark = [pytest.mark.long, pytest.mark.skipif(PROGRAMS is None, reason="no vLLM: run make test-vllm"), pytest.mark.timeout(900)]
PAGE = ROOT / "docs" / "howto" / "gateway.md"
# For little memory and few cores; nothing that changes an answer.
MODEST = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
FIRST, SECOND = "v1.0.3", "v1.0.4"  # the versions of the page: the second is loaded while the server runs
CHATS = [make_messages(f"{news} {number}") for news in (GOOD, BAD) for number in (7, 8)]
# bf16 has 8 bits: a log-probability of -3 may differ by some hundredths, and two tokens so near each other change places.
ROUNDING, MEAN_ROUNDING = 0.25, 0.06


def page_lines(port: int, base: Path) -> list[str]:
    """The page's lines for vLLM: the export, the server, the version that is loaded, the gateway."""
    block = next(block for block in re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE) if "vllm serve" in block)
    said = block.replace("\\\n", " ").replace(" BASE ", f" {shlex.quote(str(base))} ").replace("8000", str(port))
    return said.splitlines()


@dataclass
class Served:
    """A running vLLM. ``adapters`` are the exported ones by version; ``teacher`` is the trainer's policy of a version."""

    settings: Settings
    database: Database
    base: Path
    adapters: dict[str, Path]
    loading: str
    process: subprocess.Popen[bytes]
    policies: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.settings.local_endpoint}/v1"

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask vLLM itself."""
        answer = httpx2.post(f"{self.url}/{path}", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def teacher(self, version: str) -> tuple[Any, Any]:
        """The trainer's tokenizer and model in float32, without rounding of its own."""
        if version not in self.policies:
            self.policies[version] = load_policy(self.base, self.adapters.get(version), torch.float32)
        return self.policies[version]

    def logprobs(self, version: str, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """The trainer's log-probabilities before each token of an answer, [T, V]."""
        with torch.no_grad():
            logits = self.teacher(version)[1](input_ids=torch.tensor([prompt + answer])).logits[0]
        return logits[len(prompt) - 1 : -1].log_softmax(-1)


@contextmanager
def running(line: str, workplace: Path, environment: dict[str, str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server by a line of the page, until the block ends."""
    with (workplace / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {line}"], cwd=workplace, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: _answers(url) or process.poll() is not None, "the server to answer", within_s=300)
            assert process.poll() is None, (workplace / "server.log").read_text()[-3000:]
            yield process
        finally:
            process.terminate()
            process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers outlive a server that was killed


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/models", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def served(packaged_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two versions, trained on different lessons and exported; the first is served from the start."""
    home, workplace, port = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("workplace"), free_port()
    settings = Settings(
        _env_file=None, babylon_rl_home=home, local_base_model=str(packaged_base), warmup_steps=0, local_endpoint=f"http://127.0.0.1:{port}"
    )
    (workplace / ".venv").symlink_to(ROOT / ".venv")
    export, serve, load, gateway = page_lines(port, packaged_base)
    assert f"LOCAL_ENDPOINT={settings.local_endpoint} " in gateway
    with open_database(settings) as database:
        migrate(database)
        environment = os.environ | MODEST | {
            "DATABASE_URL": database.url, "BABYLON_RL_HOME": str(home), "LOCAL_BASE_MODEL": str(packaged_base),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        }  # fmt: skip
        for version in (FIRST, SECOND):
            train(settings, version)
            add_version(database, version, "deployed" if version == FIRST else "ready", checkpoints=str(home / "checkpoints"))
            subprocess.run(["bash", "-c", export.replace(FIRST, version)], cwd=workplace, env=environment, check=True)
        adapters = {version: workplace / "adapters" / version for version in (FIRST, SECOND)}
        with running(f"{serve} --host 127.0.0.1 --port {port}", workplace, environment, f"{settings.local_endpoint}/v1") as process:
            yield Served(settings, database, packaged_base, adapters, load, process)


def train(settings: Settings, version: str) -> None:
    """Publish a version: the first learns to buy on good news, the second to hold; both to sell on bad news."""
    made = settings.home / f"making-{version}"
    made.mkdir()
    sequences = make_lesson(3)
    if version == SECOND:
        sequences = [replace(sequence, advantage=advantage(sequence)) for sequence in sequences]
    trainer = CpuTrainer(settings, threads=2)
    trainer.train(make_iteration(sequences, passes=6), None, made, ignore)
    publish(made, settings.home / "checkpoints" / version, make_manifest(trainer.base_identity(), version=version))


def advantage(sequence: TrainSequence) -> float:
    """What the second version's lesson pays."""
    right = HOLD if GOOD in sequence.messages[1]["content"] else SELL
    return 1.2 if sequence.response == right else -0.6


def ask(served: Served, version: str, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    """A greedy answer of vLLM itself, with its token ids."""
    options = {"temperature": 0, "max_tokens": 24, "logprobs": True, "return_token_ids": True} | more
    said = served.post("chat/completions", model=version, messages=messages, **options)
    return said["choices"][0] | {"prompt_token_ids": said["prompt_token_ids"]}


def test_a_prompt_has_the_tokens_that_training_gives_it(served: Served) -> None:
    tokenizer, _ = served.teacher("base")
    forged = [*CHATS[0][:1], {"role": "user", "content": "News: naïve 😀\n\n{}"}]
    for messages in (*CHATS, forged, CHATS[1][1:]):
        assert tuple(ask(served, "base", messages, max_tokens=1)["prompt_token_ids"]) == encode_prompt(tokenizer, messages)


@pytest.mark.parametrize("version", ["base", FIRST])
def test_greedy_texts_and_their_log_probabilities_are_the_trainer_s_within_rounding(served: Served, version: str) -> None:
    require_the_trainer_s(served, version, other=FIRST if version == "base" else "base")


def require_the_trainer_s(served: Served, version: str, other: str) -> None:
    """Each greedy token is the trainer's likeliest, with its log-probability, and not those of another version."""
    differences, others = [], []
    for messages in CHATS:
        choice = ask(served, version, messages)
        prompt, answer = choice["prompt_token_ids"], choice["token_ids"]
        given = torch.tensor([entry["logprob"] for entry in choice["logprobs"]["content"]])
        trained, foreign = (served.logprobs(name, prompt, answer) for name in (version, other))
        own = trained[range(len(answer)), answer]
        assert (trained.max(-1).values - own).max() < ROUNDING
        differences.append((given - own).abs())
        others.append((given - foreign[range(len(answer)), answer]).abs())
    assert torch.cat(differences).max() < ROUNDING and torch.cat(differences).mean() < MEAN_ROUNDING
    assert torch.cat(others).mean() > 3 * torch.cat(differences).mean()


def decision(served: Served, version: str, messages: list[dict[str, str]]) -> dict[str, str]:
    """The trainer's greedy decision."""
    policy = Policy.load(served.base, served.adapters[version], dtype=torch.float32, adapter_name=version)
    return json.loads(policy.complete([CompletionRequest(messages, SCHEMA, temperature=0, adapter=version)])[0].text)


def decided(served: Served, version: str, messages: list[dict[str, str]]) -> dict[str, str]:
    """The decision of vLLM, asked as the page says; it has to be a text that trains."""
    choice = ask(served, version, messages, response_format=with_blanks(), max_tokens=64)
    said = choice["message"]["content"]
    sequence = make_sequence(said, messages=messages, response_format=with_blanks(), finish_reason=choice["finish_reason"])
    assert choice["finish_reason"] == "stop" and not isinstance(trainable(served.teacher(version)[0], sequence), str), said
    return json.loads(said)


def with_blanks() -> dict[str, Any]:
    """The schema of decisions with what the page adds."""
    added = re.search(r"`(\"x-guidance\": .*})`", PAGE.read_text(), re.MULTILINE)
    assert added is not None
    asked = deepcopy(SCHEMA)
    asked["json_schema"]["schema"] |= json.loads(f"{{{added[1]}}}")
    return asked


def test_greedy_decisions_under_a_schema_are_the_trainer_s(served: Served) -> None:
    made = [decided(served, FIRST, messages) for messages in CHATS]
    assert [choice["action"] for choice in made] == [decision(served, FIRST, messages)["action"] for messages in CHATS]
    assert {choice["action"] for choice in made} == {"buy", "sell"}


def test_a_version_is_loaded_while_the_server_runs_and_until_then_the_base_answers(served: Served) -> None:
    with running_gateway(served.settings, served.database) as gateway:
        call = partial(gateway.client().chat.completions.with_raw_response.create, messages=CHATS[0], temperature=0, max_tokens=8)
        before = call(model=SECOND)
        assert before.headers["x-babylon-reason"] == f"fallback from {SECOND}: refused" and before.headers["x-babylon-version"] == "base"
        workplace = served.adapters[SECOND].parents[1]
        done = subprocess.run(["bash", "-c", f"{served.loading} -sS --fail-with-body"], cwd=workplace, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        after = call(model=SECOND)
        assert after.headers["x-babylon-version"] == SECOND
    require_the_trainer_s(served, SECOND, other=FIRST)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_through_the_gateway_is_recorded_with_token_ids_and_trains_with_its_own_probabilities(served: Served, stream: bool) -> None:
    direct = ask(served, FIRST, CHATS[0])
    agent = f"agent-{stream}"
    with running_gateway(served.settings, served.database, writes=True) as gateway:
        client = gateway.client(default_headers={"x-babylon-agent": agent})
        answer = client.chat.completions.create(model=FIRST, messages=CHATS[0], temperature=0, max_tokens=24, stream=stream)
        if stream:
            chunks = list(answer)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert len(chunks) > 3
        else:
            said = answer.choices[0].message.content
        recorded = partial(rows, served.database, f"""SELECT response, metadata FROM llm_call_logs WHERE metadata LIKE '%"{agent}"%'""")
        wait_for(recorded, "the call to be written")
    (row,) = recorded()
    metadata = json.loads(row["metadata"])
    assert row["response"] == said == direct["message"]["content"] and metadata["modelVersion"] == FIRST
    assert [entry["tokenId"] for entry in metadata["logprobs"]] == direct["token_ids"]
    sequence = make_sequence(
        said, messages=CHATS[0], response_format=None, logprobs=metadata["logprobs"], finish_reason=metadata["finishReason"]
    )
    encoded = trainable(served.teacher(FIRST)[0], sequence)
    assert not isinstance(encoded, str) and list(encoded.response_ids) == direct["token_ids"]
    assert not any(math.isnan(value) for value in served_logprobs(sequence, encoded))


def test_vllm_does_with_each_parameter_what_the_page_says(served: Served) -> None:
    ask_it = asking(lambda body: httpx2.post(f"{served.url}/chat/completions", json=body, timeout=120))
    check_column("vLLM", {name: outcome(probe, ask_it) for name, probe in PROBES.items()})


def test_a_vllm_that_dies_breaks_streams_and_another_server_at_its_address_answers(served: Served, tmp_path: Path) -> None:
    with running_gateway(served.settings, served.database) as gateway:
        client = gateway.client()
        stream = client.chat.completions.create(
            model=FIRST, messages=CHATS[0], max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        os.killpg(served.process.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="model's"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model=FIRST, messages=CHATS[0])
        assert failed.value.status_code == 502 and failed.value.body["code"] == "upstream_error"
        environment = os.environ | {
            "DATABASE_URL": served.database.url, "BABYLON_RL_HOME": str(served.settings.home), "LOCAL_BASE_MODEL": str(served.base)
        }  # fmt: skip
        port = served.settings.local_endpoint.rpartition(":")[2]
        line = f"{sys.executable} -m babylon_rl serve model --port {port}"
        with running(line, tmp_path, environment, served.url):
            create = client.chat.completions.with_raw_response.create
            answer = create(model=FIRST, messages=CHATS[0], temperature=0, response_format=SCHEMA)
            assert answer.headers["x-babylon-version"] == FIRST
            said = json.loads(answer.parse().choices[0].message.content)
            assert said["action"] == decision(served, FIRST, CHATS[0])["action"]
