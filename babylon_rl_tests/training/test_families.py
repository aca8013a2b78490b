"""Llama- and Qwen-shaped bases: packed training and serving give what transformers' own forward pass gives, row by row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.device import PROCESSOR, Device
from babylon_rl.models.grammar import compile_grammar
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.models.scoring import EncodedSequence
from babylon_rl.training.backends.cpu.policy import PackedPolicy, choices, load_policy, make_items, pack
from babylon_rl_tests.tiny_model import make_adapter, make_base
from babylon_rl_tests.training.sequences import SCHEMA, make_lesson, make_messages

pytestmark = pytest.mark.slow  # torch is imported

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 1},
    "qwen2": {"rope_parameters": YARN},  # biases of queries, keys and values
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False},  # norms of queries and keys; heads wider than the states
}
DEVICES = {"processor": PROCESSOR, "as on a GPU": Device("cpu", 2**30)}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_base(tmp_path_factory.mktemp(request.param), family=request.param, **FAMILIES[request.param])
    # New models have biases of zero and norms of one, which hide whether they are computed.
    with quiet_loading():
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                torch.nn.init.normal_(weight, 1.0, 0.5)
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter"), targets=("q_proj", "v_proj", "gate_proj", "down_proj"))


def plain_model(base: Path, adapter: Path) -> Any:
    """Base and adapter as peft and transformers compute them, without any of our code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        return PeftModel.from_pretrained(loaded, str(adapter), is_trainable=True)


def plain_logprobs(model: Any, encoded: EncodedSequence) -> list[tuple[Tensor, Tensor]]:
    """Log-probability and entropy of each token with alternatives, of one sequence alone."""
    logits = model(input_ids=torch.tensor([[*encoded.prompt_ids, *encoded.response_ids]])).logits[0]
    found = []
    for t, (legal, token) in enumerate(zip(encoded.legal_t, encoded.response_ids, strict=True)):
        if encoded.trainable_t[t]:
            assert legal is not None
            logprobs = torch.log_softmax(logits[len(encoded.prompt_ids) + t - 1][list(legal)], -1)
            found.append((logprobs[legal.index(token)], -(logprobs.exp() * logprobs).sum()))
    return found


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_packed_log_probabilities_and_gradients_are_those_of_transformers(base: Path, adapter: Path, device: Device) -> None:
    tokenizer, model = load_policy(base, adapter, torch.float32, device)
    items, _ = make_items(tokenizer, make_lesson(8))
    packs = pack([item.encoded for item in items], most_tokens=400)
    policy = PackedPolicy(model, device=device)
    groups = policy.grouped(packs)
    assert len(packs) < len(items) and (len(groups) == 1) == device.gpu

    def compute(group: Any) -> tuple[dict[tuple[int, int], Tensor], tuple[Tensor, ...]]:
        spots = [spot for row in group for spot in choices(row, items)]
        values, entropies = policy.values(policy.hidden(group, items), items, spots)
        push = torch.tensor([items[n].advantage for _, n, _ in spots])
        found = torch.autograd.grad((push * values + 0.1 * entropies).sum(), list(policy.parameters.values()))
        return {(n, t): value.detach() for (_, n, t), value in zip(spots, values, strict=True)}, found

    plain, total, expected = plain_model(base, adapter), torch.tensor(0.0), dict[tuple[int, int], float]()
    for n, item in enumerate(items):
        places = [t for t, trains in enumerate(item.encoded.trainable_t) if trains]
        for t, (value, entropy) in zip(places, plain_logprobs(plain, item.encoded), strict=True):
            expected[n, t] = float(value.detach())
            total = total + item.advantage * value + 0.1 * entropy
    weights = {name: weight for name, weight in plain.named_parameters() if weight.requires_grad}
    assert list(weights) == list(policy.parameters)
    total.backward()

    for _ in range(2):  # the second time from the first trained layer on
        parts = policy.each(groups, compute)
        assert {spot: float(value) for part, _ in parts for spot, value in part.items()} == pytest.approx(expected, abs=1e-4)
        gradients = [torch.stack(of).sum(0) for of in zip(*(found for _, found in parts), strict=True)]
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            assert float((gradient - weight.grad).norm()) < 1e-4 * float(weight.grad.norm())


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_what_is_served_under_a_grammar_is_what_a_plain_loop_takes(base: Path, adapter: Path, device: Device) -> None:
    policy = Policy.load(base, adapter, dtype=torch.float32, adapter_name="v1.0.0", device=device)
    asked = [
        CompletionRequest(make_messages(f"news {n}"), SCHEMA, 0.0 if n % 2 else 1.0, seed=n, adapter="v1.0.0", max_tokens=64)
        for n in range(8)
    ]
    plain, start = plain_model(base, adapter).eval(), compile_grammar(SCHEMA, policy.tokenizer).trie
    for request, answer in zip(asked, policy.complete(asked), strict=True):
        ids, node = list(policy.row(request).prompt), start
        for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([ids])).logits[0, -1]
            expected = torch.log_softmax(logits[list(node.legal)], -1)
            assert logprob == pytest.approx(float(expected[node.legal.index(token)]), abs=1e-4)
            if request.temperature == 0:
                assert token == node.legal[int(expected.argmax())]
            ids.append(token)
            node = node.children[token]
        assert not node.children  # a whole answer
