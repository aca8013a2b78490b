"""The trainer and the model server on a GPU beside the processor: `export` here, `run` on a machine with a GPU, in ten minutes at most.

`python benchmarks/gpu_trainer.py export FOLDER` writes a frozen batch of simulated hours, the processor's figures of it, and the base's
package in parts of 40 MiB; with `--wheels` also the packages that a machine with torch and transformers lacks, for its Python 3.12.
`python benchmarks/gpu_trainer.py run FOLDER --out FILE` joins the parts, and writes one JSON after every section: training with its
loss, gradient and decisions beside the processor's, a training that is killed and resumed, answers a second, and a base of 1.5 billion
random weights (`--small`: a small one, and few answers). FOLDER lies in the repository and is ignored by git there. `run --device cpu`
proves the script without a GPU, `--device as-gpu` under a GPU's rules.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.models.base_model import WHEEL, convert, packaged_wheel, quiet_loading
from babylon_rl.models.checkpoints import WEIGHTS
from babylon_rl.models.device import PROCESSOR, Device, best_device
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import Settings, load_settings
from babylon_rl.training.backends.protocol import StepMetrics, TrainIteration, TrainSequence

PART_BYTES = 40 * 2**20
BATCH, GRADIENT, FIGURES = "batch.json", "gradient.safetensors", "processor.json"
# What trainer and server import beside torch, transformers and what these bring.
PACKAGES = (
    "peft", "gguf", "msgspec", "pydantic", "pydantic-core", "pydantic-settings", "python-dotenv", "typing-inspection", "annotated-types",
    "psycopg", "psycopg-binary", "starlette", "uvicorn", "uvloop", "httptools", "h11",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
# From the processor's figures: bfloat16 rounds products of the two in another order.
BOUNDS = {"loss_away": 0.02, "gradient_cosine": 0.99, "decisions_equal": 0.95, "logprob_away": 0.25}
ANSWERS, FEW_ANSWERS, TEXT_TOKENS, CLIENTS = 256, 16, 64, 32
LARGE = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


def settings_for_base(base: Path) -> Settings:
    """The defaults of a training on this base."""
    return Settings(_env_file=None, train_rl_local=True, local_base_model=str(base))


def device_named(name: str) -> Device:
    """cuda, cpu, or as-gpu: the processor under a GPU's rules."""
    if name == "cuda":
        found = best_device()
        if not found.gpu:
            raise SystemExit("torch sees no GPU here.")
        return found
    return Device("cpu", 2**33) if name == "as-gpu" else PROCESSOR


def trained(
    base: Path, device: Device, sequences: Sequence[TrainSequence], parent: Path | None, out: Path, step: int = 1
) -> dict[str, Any]:
    """Train one iteration; loss of each optimizer step, tokens and seconds. Prints a line for every step."""
    from babylon_rl.training.backends.cpu.trainer import CpuTrainer

    losses: list[float] = []

    def told(one: StepMetrics) -> None:
        losses.append(one.loss)
        print(f"step {one.step} of {one.steps}: loss {one.loss:.4f}", flush=True)

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.perf_counter()
    result = CpuTrainer(settings_for_base(base), device=device).train(TrainIteration("gpu", step, sequences, 0, 2), parent, out, told)
    return {
        "seconds": round(time.perf_counter() - began, 2), "steps": len(losses), "losses": losses, "sequences": result.sequences,
        "kl": result.metrics["kl"], "tokens_per_second": result.metrics["tokensPerSecond"], "sha256": digest(out), **peak_gb(device),
    }  # fmt: skip


def digest(adapter: Path) -> str:
    """Hash of an adapter's weights."""
    return hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()[:16]


def peak_gb(device: Device) -> dict[str, float]:
    """Most memory of a GPU since the last time."""
    import torch

    if device.name != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gb": round(peak, 2)}


def first_gradient(base: Path, device: Device, sequences: Sequence[TrainSequence]) -> tuple[float, dict[str, Any]]:
    """Loss and gradient of the first optimizer step, in the order of the data."""
    import torch

    from babylon_rl.training.backends.cpu.policy import PackedPolicy, load_policy, make_items, pack
    from babylon_rl.training.backends.cpu.trainer import IterationRun, optimizer_steps

    torch.manual_seed(0)
    settings = settings_for_base(base)
    tokenizer, model = load_policy(base, None, device=device)
    items, _ = make_items(tokenizer, sequences)
    policy = PackedPolicy(model, usable_cores(), device=device)
    step = next(optimizer_steps(pack([item.encoded for item in items]), settings))
    found = IterationRun(policy, items, TrainIteration("gpu", 1, sequences, 0), settings).gradients(step)
    return found["loss"], {name: weight.grad.cpu().bfloat16() for name, weight in policy.parameters.items() if weight.grad is not None}


def decisions(base: Path, device: Device, adapter: Path, sequences: Sequence[TrainSequence]) -> list[dict[str, Any]]:
    """The likeliest answer of base and trained policy to each prompt, and its log-probability."""
    from babylon_rl.models.policy import CompletionRequest, Policy

    policy = Policy.load(base, adapter, adapter_name="trained", device=device)
    found = []
    for name in (None, "trained"):
        asked = [CompletionRequest(list(one.messages), one.response_format, 0.0, adapter=name) for one in sequences]
        found += [{"text": answer.text, "logprob": sum(answer.logprobs)} for answer in policy.complete(asked)]
    return found


def figures(base: Path, device: Device, sequences: Sequence[TrainSequence], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training, its decisions and its first gradient on one device."""
    loss, gradient = first_gradient(base, device, sequences)
    training = trained(base, device, sequences, None, out)
    prompts = sequences[:: max(1, len(sequences) // 64)]
    return {"first_loss": loss, "training": training, "decisions": decisions(base, device, out, prompts)}, gradient


def compared(here: dict[str, Any], gradient: dict[str, Any], there: dict[str, Any], of_processor: dict[str, Any]) -> dict[str, float]:
    """How far two devices are from each other."""
    import torch

    one, other = (torch.cat([of[name].float().flatten() for name in sorted(of)]) for of in (gradient, of_processor))
    pairs = list(zip(here["decisions"], there["decisions"], strict=True))
    equal = [(a, b) for a, b in pairs if a["text"] == b["text"]]
    return {
        "loss_away": abs(here["first_loss"] - there["first_loss"]),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(one, other, dim=0)),
        "gradient_norm_ratio": float(one.norm() / other.norm()),
        "decisions_equal": len(equal) / len(pairs),
        "logprob_away": max((abs(a["logprob"] - b["logprob"]) for a, b in equal), default=0.0),
        "times_faster": there["training"]["seconds"] / here["training"]["seconds"],
    }


def killed_and_resumed(folder: Path, base: Path, device: str, sequences: Sequence[TrainSequence], first: Path, out: Path) -> dict[str, Any]:
    """Kill the second iteration after its first optimizer step, and train it again."""
    uninterrupted = trained(base, device_named(device), sequences, first, out / "uninterrupted", 2)
    command = [sys.executable, __file__, "iterate", str(folder), "--device", device, "--base", str(base)]
    command += ["--parent", str(first), "--out", str(out / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [line for line in [child.stdout.readline()] if line]
        child.send_signal(signal.SIGKILL)
    left = sorted(path.name for path in (out / "killed").iterdir())
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {
        "killed_after": lines,
        "left": left,
        "uninterrupted": uninterrupted,
        "same_bytes": digest(out / "killed") == uninterrupted["sha256"],
    }


def served(base: Path, device: Device, adapter: Path, sequences: Sequence[TrainSequence], answers: int) -> dict[str, Any]:
    """Answers and tokens a second in this process; a quarter as many free texts as answers."""
    from babylon_rl.models.policy import CompletionRequest, Policy

    policy = Policy.load(base, adapter, adapter_name="trained", device=device)
    prompts = [list(sequences[n % len(sequences)].messages) for n in range(answers)]
    form = sequences[0].response_format
    asked = {
        "decisions": [CompletionRequest(one, form, 1.0, n, adapter="trained") for n, one in enumerate(prompts)],
        "texts": [CompletionRequest(one, None, 1.0, n, TEXT_TOKENS, "trained") for n, one in enumerate(prompts[: answers // 4])],
    }
    found: dict[str, Any] = {"sizes": str(policy.sizes), **peak_gb(device)}
    policy.complete(asked["decisions"][:2])  # kernels are loaded afterwards
    for name, requests in asked.items():
        began = time.perf_counter()
        given = policy.complete(requests)
        seconds = time.perf_counter() - began
        found[f"{name}_a_second"] = round(len(given) / seconds, 1)
        found[f"{name}_tokens_a_second"] = round(sum(answer.drawn_tokens for answer in given) / seconds, 1)
    return found | peak_gb(device)


def server(base: Path, device: Device, adapter: Path, sequences: Sequence[TrainSequence], answers: int) -> dict[str, Any]:
    """Answers and tokens a second of a model server with some clients; it chooses its device itself."""
    from babylon_rl.models.server_process import running_server

    if device.name == "cpu" and device.gpu:
        return {"left_out": "a server of its own process computes by the rules of the processor here"}
    prompts = [list(sequences[n % len(sequences)].messages) for n in range(answers)]
    with running_server(base, {"trained": adapter}, threads=usable_cores()) as running:
        asyncio.run(_asked_by_clients(running.url, prompts[:2], sequences[0].response_format))  # kernels are loaded afterwards
        began = time.perf_counter()
        tokens = asyncio.run(_asked_by_clients(running.url, prompts, sequences[0].response_format))
        seconds = time.perf_counter() - began
    return {"decisions_a_second": round(answers / seconds, 1), "tokens_a_second": round(tokens / seconds, 1)}


async def _asked_by_clients(url: str, prompts: Sequence[Any], form: Any) -> int:
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as client:
        asked = [{"model": "trained", "messages": one, "response_format": form, "seed": n} for n, one in enumerate(prompts)]
        answers = await asyncio.gather(*(client.post("/chat/completions", json=one) for one in asked))
    return sum(answer.raise_for_status().json()["usage"]["completion_tokens"] for answer in answers)


def large(base: Path, device: Device, sequences: Sequence[TrainSequence], out: Path, shape: dict[str, int]) -> dict[str, Any]:
    """Train some steps of a Qwen-shaped base of random weights, for its size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    vocabulary = 151_936 if shape is LARGE else len(tokenizer)
    config = AutoConfig.for_model("qwen2", vocab_size=vocabulary, max_position_embeddings=4096, tie_word_embeddings=True, **shape)
    with quiet_loading(), torch.device(device.name):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(out / "base")
    weights = model.num_parameters()
    del model
    tokenizer.save_pretrained(out / "base")
    return {"weights": weights} | trained(out / "base", device, sequences[:72], None, out / "adapter")


def export(folder: Path, hours: int, most: int, wheels: bool) -> None:
    """Write batch, processor's figures and base; print the commands for the machine with a GPU."""
    from safetensors.torch import save_file
    from training_rows import demo_sequences

    folder.mkdir(parents=True, exist_ok=True)
    sequences = list(demo_sequences(hours))[:most]
    (folder / BATCH).write_bytes(msgspec.json.encode(sequences))
    whole = packaged_wheel(load_settings().home / "cache" / "wheels").read_bytes()
    parts = range(0, len(whole), PART_BYTES)
    for number, start in enumerate(parts):
        (folder / f"base{number}").mkdir(exist_ok=True)
        (folder / f"base{number}" / "part").write_bytes(whole[start : start + PART_BYTES])
    if wheels:
        _download(folder / "wheels")
    with tempfile.TemporaryDirectory() as scratch:
        found, gradient = figures(_base(folder, Path(scratch)), PROCESSOR, sequences, Path(scratch, "adapter"))
    save_file(gradient, folder / GRADIENT)
    (folder / FIGURES).write_text(json.dumps(found))
    site = f"python3 -m pip install -q --no-index --no-deps --target /tmp/site {folder}/wheels/*.whl"
    for number in range(len(parts) - 1):
        print(f"{number + 1}. carry {folder}/base{number}: cp -r {folder}/base{number} /tmp")
    print(f"{len(parts)}. within 30 s carry {folder}/base{len(parts) - 1} and all else of {folder}:")
    print(f"   cp -r /tmp/base* {folder} && {site} && PYTHONPATH=/tmp/site:. python3 {sys.argv[0]} run {folder} --out $OUT/gpu.json")


def _download(folder: Path) -> None:
    from importlib.metadata import version

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    pip += ["--python-version", "3.12", "--implementation", "cp", *(f"--platform={one}" for one in PLATFORMS), "-d", str(folder)]
    subprocess.run([*pip, *(f"{name}=={version(name)}" for name in PACKAGES)], check=True)


def _base(folder: Path, scratch: Path) -> Path:
    """Join the parts of the base's package and convert it."""
    (scratch / WHEEL).write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("base*/part"))))
    base = scratch / "base"
    base.mkdir()
    with quiet_loading(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws its bar whatever is set
        convert(scratch / WHEEL, base)
    return base


def run(folder: Path, device: str, out: Path, small: bool) -> int:
    """Measure every section; 1 when a bound is missed."""
    import torch
    from safetensors.torch import load_file

    sequences, answers = _batch(folder), FEW_ANSWERS if small else ANSWERS
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "card": torch.cuda.get_device_name() if device == "cuda" else ""}

    def section(name: str, measure: Callable[[], Any]) -> None:
        start = time.perf_counter()
        try:
            found[name] = measure()
        except Exception as error:  # the other sections are measured all the same
            traceback.print_exc()
            found[name] = {"failed": repr(error)[:500]}
        found["seconds"] = found.get("seconds", {}) | {name: round(time.perf_counter() - start, 1)}
        out.write_text(json.dumps(found, indent=2))
        print(f"{name}: {json.dumps(found[name])[:1500]}", flush=True)

    with tempfile.TemporaryDirectory() as made:
        scratch, there = Path(made), json.loads((folder / FIGURES).read_text())
        base, first = _base(folder, scratch), scratch / "first"
        began = time.perf_counter()
        here, gradient = figures(base, device_named(device), sequences, first)
        section("training", lambda: here["training"] | {"seconds_with_gradient_and_decisions": round(time.perf_counter() - began, 1)})
        section("beside_processor", lambda: compared(here, gradient, there, load_file(folder / GRADIENT)))
        section("its_processor", lambda: trained(base, PROCESSOR, sequences, None, scratch / "processor"))
        section("resumed", lambda: killed_and_resumed(folder, base, device, sequences, first, scratch))
        section("served", lambda: served(base, device_named(device), first, sequences, answers))
        section("server", lambda: server(base, device_named(device), first, sequences, answers))
        section("large", lambda: large(base, device_named(device), sequences, scratch / "large", SMALL if small else LARGE))
    missed = [name for name, measured in found.items() if isinstance(measured, dict) and "failed" in measured]
    beside = found["beside_processor"]
    missed += [
        name
        for name, bound in BOUNDS.items()
        if name in beside and (beside[name] > bound if name.endswith("away") else beside[name] < bound)
    ]
    missed += [] if found["resumed"].get("same_bytes") else ["same_bytes"]
    section("missed", lambda: missed)
    return int(bool(missed))


def _batch(folder: Path) -> list[TrainSequence]:
    return msgspec.json.decode((folder / BATCH).read_bytes(), type=list[TrainSequence])


def main() -> int:
    """Export, run, or train the iteration that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["export", "run", "iterate"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=1_000_000, help="most sequences of the batch")
    parser.add_argument("--wheels", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu", "as-gpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--parent", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    set_threads(1)
    if given.command == "export":
        export(given.folder, given.hours, given.sequences, given.wheels)
    elif given.command == "iterate":
        trained(given.base, device_named(given.device), _batch(given.folder), given.parent, given.out, 2)
    else:
        return run(given.folder, given.device, given.out, given.small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
