"""Trainer and server as on a GPU, without one: on the processor under a GPU's rules, and on torch's meta device, which computes nothing.

Not covered here are the kernels of a GPU: their numbers, their speed, and the order of their sums.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from babylon_rl.models import row_attention
from babylon_rl.models.checkpoints import WEIGHTS
from babylon_rl.models.device import PROCESSOR, BatchSizes, Device, batch_sizes, best_device, best_dtype, training_bytes
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.models.scoring import causal_model
from babylon_rl.settings import Settings
from babylon_rl.training.backends import protocol
from babylon_rl.training.backends.cpu import trainer as cpu_trainer
from babylon_rl.training.backends.cpu.answers import answer_logprob
from babylon_rl.training.backends.cpu.bounds import at_choices, read
from babylon_rl.training.backends.cpu.policy import PackedPolicy, choices, grouped, load_policy, make_items, pack, tokens_of
from babylon_rl.training.backends.cpu.trainer import OPTIMIZER_STATE, CpuTrainer, IterationRun
from babylon_rl.training.backends.protocol import IterationResult
from babylon_rl_tests.tiny_model import make_adapter, make_base
from babylon_rl_tests.training.sequences import BUY, SCHEMA, ignore, make_iteration, make_lesson, make_messages, make_sequence

pytestmark = pytest.mark.slow  # torch is imported

AS_ON_A_GPU = Device("cpu", 2**30)


def trained(settings: Settings, out: Path, device: Device, parent: Path | None = None, step: int = 1) -> IterationResult:
    out.mkdir()
    return CpuTrainer(settings, device=device).train(make_iteration(make_lesson(4), step, 2), parent, out, ignore)


def test_a_base_is_placed_by_the_rules_of_its_device(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    trained(cpu_settings, tmp_path / "out", AS_ON_A_GPU)
    served = Policy.load(tiny_base, tmp_path / "out", adapter_name="v1.0.0", device=AS_ON_A_GPU)
    elsewhere = Policy.load(tiny_base, tmp_path / "out", adapter_name="v1.0.0", device=PROCESSOR)
    on_gpu = (load_policy(tiny_base, None, device=AS_ON_A_GPU)[1], served.model, served.twin().model)
    for model, precision in (*((model, torch.bfloat16) for model in on_gpu), (elsewhere.model, best_dtype())):
        kinds = {(weight.dtype, "lora_" in name) for name, weight in model.named_parameters()}
        assert kinds == {(precision, False), (torch.float32, True)}


@pytest.mark.parametrize("device", [PROCESSOR, AS_ON_A_GPU], ids=["processor", "gpu"])
def test_adapters_are_trained_in_float32_whatever_the_base_s_precision(cpu_settings: Settings, tmp_path: Path, device: Device) -> None:
    # A step is far smaller than half a unit in the last place of a weight in bfloat16, which would stay as it is.
    trained(cpu_settings, tmp_path / "first", device)
    trained(cpu_settings, tmp_path / "second", device, tmp_path / "first", 2)
    for saved in (WEIGHTS, OPTIMIZER_STATE):
        assert {weight.dtype for weight in load_file(tmp_path / "second" / saved).values()} == {torch.float32}


def test_a_gpu_s_rules_train_the_same_policy_and_the_same_bytes_again(cpu_settings: Settings, tmp_path: Path) -> None:
    # Twice under a GPU's rules, once on the processor.
    found = [trained(cpu_settings, tmp_path / name, device) for name, device in (("a", AS_ON_A_GPU), ("b", AS_ON_A_GPU), ("c", PROCESSOR))]
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert found[0].loss == pytest.approx(found[2].loss, abs=0.02)
    assert found[0].metrics["gradientNorm"] == pytest.approx(found[2].metrics["gradientNorm"], rel=0.05)
    assert found[0].metrics["kl"] == pytest.approx(found[2].metrics["kl"], rel=0.2)


@pytest.mark.parametrize(("first", "second"), [(AS_ON_A_GPU, PROCESSOR), (PROCESSOR, AS_ON_A_GPU)])
def test_an_iteration_goes_on_where_another_device_stopped(cpu_settings: Settings, tmp_path: Path, first: Device, second: Device) -> None:
    trained(cpu_settings, tmp_path / "one", first)
    expected = trained(cpu_settings, tmp_path / "stayed", first, tmp_path / "one", 2)
    moved = trained(cpu_settings, tmp_path / "moved", second, tmp_path / "one", 2)
    assert moved.loss == pytest.approx(expected.loss, abs=0.02)
    steps = {float(value) for name, value in load_file(tmp_path / "moved" / OPTIMIZER_STATE).items() if name.endswith(":step")}
    assert steps == {expected.metrics["optimizerSteps"] * 2}


def test_a_server_as_on_a_gpu_answers_in_larger_batches(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    policies = [Policy.load(tiny_base, adapter, dtype=torch.float32, adapter_name="v1.0.0", device=one) for one in (PROCESSOR, AS_ON_A_GPU)]
    assert policies[1].sizes.rows > policies[0].sizes.rows and policies[1].sizes.prompt_tokens > policies[0].sizes.prompt_tokens
    asked = [
        CompletionRequest(make_messages(f"news {n}" * (n % 5 + 1)), SCHEMA if n % 2 else None, seed=n, max_tokens=8, adapter="v1.0.0")
        for n in range(40)
    ]
    together = []
    monkeypatch.setattr(row_attention, "_together", lambda *given, do=row_attention._together: together.append(given[0]) or do(*given))
    processor, gpu = (policy.complete(asked) for policy in policies)
    assert {len(filled.new) for filled in together} >= {20}
    for one, other in zip(processor, gpu, strict=True):
        assert one.token_ids == other.token_ids and one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_the_free_memory_decides_the_sizes_by_powers_of_two(tiny_base: Path) -> None:
    _, model = load_policy(tiny_base, None, device=PROCESSOR)
    causal = causal_model(model)
    assert batch_sizes(PROCESSOR, causal) == BatchSizes()
    little, some, more = (batch_sizes(Device("cuda", free), causal) for free in (0, 2**33, 2**36))
    assert little == replace(BatchSizes(), rows=little.rows)
    assert batch_sizes(Device("cuda", 2**33 - 2**24), causal) == some
    assert more.training_tokens == 8 * some.training_tokens > BatchSizes.training_tokens
    assert more.cache_tokens == 8 * some.cache_tokens


@pytest.mark.parametrize("shape", [{}, {"family": "qwen3", "hidden_size": 128, "intermediate_size": 512, "head_dim": 64}])
def test_a_pass_keeps_no_more_of_a_token_than_the_sizes_allow_for(shape: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, model = load_policy(make_base(tmp_path, positions=2048, **shape), None, device=AS_ON_A_GPU)
    items, _ = make_items(tokenizer, [*make_lesson(4), make_sequence(news="price " * 100)])
    packs, policy = pack([item.encoded for item in items]), PackedPolicy(model, device=AS_ON_A_GPU)
    weights, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values, _ = policy.each([packs], lambda group: policy.values(policy.hidden(group, items), items, spots_of(group, items)))[0]
    assert values.requires_grad
    of_a_token = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / tokens_of(packs)
    assert of_a_token < training_bytes(causal_model(model).config) < 30 * of_a_token


def spots_of(group: Any, items: Any) -> Any:
    return [spot for row in group for spot in choices(row, items)]


def test_a_step_of_few_packs_has_work_for_two_processors(tiny_base: Path) -> None:
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    items, _ = make_items(tokenizer, make_lesson(3))
    packs = pack([item.encoded for item in items], most_tokens=1)[:3]
    assert len(grouped(packs)) == 1
    assert PackedPolicy(model).grouped(packs) == [packs[:1], packs[1:]] and PackedPolicy(model).grouped(packs[:1]) == [packs[:1]]
    assert PackedPolicy(model, device=AS_ON_A_GPU).grouped(packs) == [packs]


@pytest.mark.parametrize("most_tokens", [1, 300])
def test_states_of_a_group_are_those_of_its_packs_alone(tiny_base: Path, most_tokens: int) -> None:
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    items, _ = make_items(tokenizer, make_lesson(3))
    packs = pack([item.encoded for item in items], most_tokens=most_tokens)
    alone, together = PackedPolicy(model.eval()), PackedPolicy(model, device=AS_ON_A_GPU)
    assert len(together.grouped(packs)) < len(packs)
    bases = [policy.base_states(packs, items) for policy in (alone, together)]
    for one, other in zip(*bases, strict=True):
        torch.testing.assert_close(one, other)
    for name, weights in together.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    states = [policy.states(packs, items) for policy in (alone, together)]
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_says_which_device_is_here(monkeypatch: pytest.MonkeyPatch, cpu_settings: Settings, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert best_device() == PROCESSOR
    monkeypatch.setattr(
        torch, "cuda", SimpleNamespace(is_available=lambda: True, empty_cache=lambda: None, mem_get_info=lambda: (2**30, 2**31))
    )
    assert best_device() == Device("cuda", 2**30)


@pytest.mark.parametrize(("trainer", "on_gpu"), [("cpu", False), ("local", True), (None, True)])
def test_only_the_trainer_cpu_leaves_a_gpu_alone(
    cpu_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str | None, on_gpu: bool
) -> None:
    taken: list[Device] = []
    monkeypatch.setattr(cpu_trainer, "best_device", lambda: taken.append(AS_ON_A_GPU) or AS_ON_A_GPU)
    settings = cpu_settings.model_copy(update={"trainer": trainer})
    CpuTrainer(settings).train(make_iteration(make_lesson(2)), None, tmp_path, ignore)
    assert taken == [AS_ON_A_GPU] * on_gpu


@pytest.mark.parametrize(("art_is_here", "trainer"), [(False, "local"), (True, "cpu")])
def test_a_batch_of_this_trainer_stays_its_own_and_takes_a_gpu_where_there_is_one(
    cpu_settings: Settings, monkeypatch: pytest.MonkeyPatch, art_is_here: bool, trainer: str
) -> None:
    monkeypatch.setattr(protocol, "gpu_is_here", lambda: art_is_here)
    local = cpu_settings.model_copy(update={"trainer": "local", "local_base_model": None})
    resumed = protocol.settings_for("cpu", local)
    assert resumed.trainer == trainer and protocol.trainer_choice(resumed).backend == "cpu"


class OnOneDevice(TorchFunctionMode):
    """Fails where tensors of two devices meet, and makes up the numbers that the meta device does not have.

    A GPU takes what torch's checks on the meta device let pass: single numbers from the processor, and indexes.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.item, Tensor.__float__):
            return 0.5
        if func is Tensor.__int__:
            return 0
        if func is Tensor.__bool__:
            return False
        if func is Tensor.tolist:
            return torch.full(args[0].shape, -1.0 if args[0].is_floating_point() else 0).tolist()
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0]  # all of them
        if func is Tensor.__setitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return None
        places = {one.device.type for one in tensors((args, list(kwargs.values()))) if one.dim()}
        assert func in (Tensor.to, Tensor.copy_) or len(places) < 2, f"{func} of tensors on {places}"
        return func(*args, **kwargs)


def tensors(given: Any) -> list[Tensor]:
    if isinstance(given, list | tuple):
        return [found for one in given for found in tensors(one)]
    return [given] if isinstance(given, Tensor) else []


META = Device("meta", 2**30)


@pytest.mark.parametrize("few_scores", [row_attention.FEW_SCORES, 0])
def test_every_tensor_of_a_training_step_is_on_the_device_of_the_model(
    cpu_settings: Settings, tiny_base: Path, few_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention, "FEW_SCORES", few_scores)
    tokenizer, model = load_policy(tiny_base, None, device=AS_ON_A_GPU)
    free = make_sequence("I would rather wait.", response_format=None)
    items, _ = make_items(tokenizer, [*make_lesson(4), free])
    packs, policy = pack([item.encoded for item in items], most_tokens=300), PackedPolicy(model.to("meta"), device=META)
    assert policy.head.device.type == "meta" and len(packs) > 1
    # Of a second generation, so that the parent is read, too.
    iteration = replace(make_iteration(make_lesson(4)), generation=2)
    run = IterationRun(policy, items, iteration, cpu_settings.model_copy(update={"kl_penalty": 0.1}))
    with OnOneDevice():
        assert answer_logprob(items[0].encoded, at_choices(read(policy, items, packs), items))
        result = run.train(ignore)
    assert {"kl", "ratio", "gradientNorm", "klParent", "stepBack"} <= set(result.metrics)


@pytest.mark.parametrize("few_scores", [row_attention.FEW_SCORES, 0])
def test_every_tensor_of_an_answer_is_on_the_device_of_the_model(
    tiny_base: Path, tmp_path: Path, few_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention, "FEW_SCORES", few_scores)
    loaded = Policy.load(tiny_base, make_adapter(tiny_base, tmp_path / "adapter"), adapter_name="v1.0.0", device=AS_ON_A_GPU)
    policy = Policy(loaded.model.to("meta"), loaded.tokenizer, {"v1.0.0": loaded.model.active_adapter}, device=META)
    kinds: list[Any] = [(SCHEMA, 1.0, None), (None, 0.0, "v1.0.0"), (SCHEMA, 0.0, "v1.0.0"), (None, 1.0, None)]
    asked = [
        CompletionRequest(make_messages(f"{BUY} {n}"), form, temperature, n, 5, adapter, top_logprobs=2)
        for n, (form, temperature, adapter) in enumerate(kinds * 2)
    ]
    with OnOneDevice():
        assert all(answer.token_ids for answer in policy.complete(asked))
