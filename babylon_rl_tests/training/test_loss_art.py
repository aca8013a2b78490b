"""The loss against that of the installed openpipe-art, on its own packed inputs and through the whole trainer."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from babylon_rl.models.policy import Policy
from babylon_rl.settings import Settings
from babylon_rl.training.backends.cpu.loss import ART_WEIGHTS, LossWeights, token_loss
from babylon_rl.training.backends.cpu.policy import Item, PackedPolicy, make_items, pack
from babylon_rl.training.backends.cpu.trainer import IterationRun
from babylon_rl_tests.tiny_model import make_adapter
from babylon_rl_tests.training.sequences import BUY, GOOD, make_iteration, make_lesson, make_sequence
from babylon_rl_tests.unpacked import branch_logprobs

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
NAN = math.nan
Rows = dict[str, list[list[float]]]
Oracle = Callable[[Rows, dict[str, float], str], tuple[float, torch.Tensor]]

# In a process of its own: importing art loads .env and changes logging. Positions are ART's: new_logprobs[j] is of token j + 1.
ORACLE = """
import json, sys, torch
from art.loss import loss_fn
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    rows = {name: torch.tensor(values) for name, values in asked["rows"].items()}
    new = rows.pop("new_logprobs").requires_grad_()
    inputs = rows | {"assistant_mask": rows["assistant_mask"] > 0}
    loss = loss_fn(inputs, new, None, None, asked["options"], reduction=asked["reduction"]).policy_loss
    loss.backward()
    print(json.dumps({"loss": loss.item(), "gradient": new.grad.tolist()}), flush=True)
"""


@pytest.fixture(scope="module")
def art() -> Iterator[Oracle]:
    """Asks art.loss.loss_fn: its loss, and the gradient by new_logprobs."""
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with subprocess.Popen(
        [sys.executable, "-c", ORACLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout
        assert "ready" in iter(lambda: answers.readline().strip() or "nothing", "nothing")

        def ask(rows: Rows, options: dict[str, float], reduction: str) -> tuple[float, torch.Tensor]:
            asked.write(json.dumps({"rows": rows, "options": options, "reduction": reduction}) + "\n")
            asked.flush()
            answer = json.loads(answers.readline())
            return answer["loss"], torch.tensor(answer["gradient"])

        yield ask
        asked.close()


def packed_rows(seed: int, recorded: float) -> Rows:
    """Three rows of 40 tokens, each with prompts and answers of several sequences; a share of the tokens has recorded log-probabilities."""
    rng = random.Random(seed)
    found: Rows = {name: [] for name in ("new_logprobs", "logprobs", "advantages", "assistant_mask", "weights")}
    for _ in range(3):
        row: dict[str, list[float]] = {name: [] for name in found}
        while len(row["weights"]) < 40:
            advantage, weight, trains = rng.gauss(0, 1), rng.uniform(0.2, 2), bool(row["weights"]) and rng.random() < 0.6
            for _ in range(min(rng.randint(2, 8), 40 - len(row["weights"]))):
                new = -rng.expovariate(0.7)
                row["new_logprobs"].append(new)
                row["logprobs"].append(-rng.expovariate(0.7) if rng.random() < recorded else NAN)
                row["advantages"].append(advantage)
                row["assistant_mask"].append(float(trains))
                row["weights"].append(weight if trains else 0.0)
        for name, values in row.items():
            found[name].append(values)
    return found


def ours(rows: Rows, weights: LossWeights, reduction: str) -> tuple[float, torch.Tensor]:
    """The same through ``token_loss``: each trained token with the position before it."""
    new = torch.tensor(rows["new_logprobs"], requires_grad=True)
    after = {name: torch.tensor(values)[:, 1:] for name, values in rows.items() if name != "new_logprobs"}
    trains = after["assistant_mask"] > 0
    logprobs_n = new[:, :-1][trains]
    advantages_n, served_n, weight_n = (after[name][trains] for name in ("advantages", "logprobs", "weights"))
    total = (weight_n * token_loss(logprobs_n, torch.zeros_like(served_n), advantages_n, served_n, None, weights)).sum()
    loss = total / len(weight_n) if reduction == "mean" else total
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad


@pytest.mark.long
@pytest.mark.parametrize("recorded", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_arts_on_the_same_packed_inputs(art: Oracle, recorded: float, reduction: str) -> None:
    for seed in range(4):
        rows = packed_rows(seed, recorded)
        theirs, mine = art(rows, {}, reduction), ours(rows, ART_WEIGHTS, reduction)
        assert mine[0] == pytest.approx(theirs[0], abs=TOLERANCE)
        torch.testing.assert_close(mine[1], theirs[1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("epsilon", "epsilon_high"), [(0.2, 0.2), (0.2, 0.28), (0.5, 9.0), (1.0, 0.0)])
def test_asymmetric_clipping_is_arts(art: Oracle, epsilon: float, epsilon_high: float) -> None:
    rows = packed_rows(7, 1.0)
    weights = replace(ART_WEIGHTS, epsilon=epsilon, epsilon_high=epsilon_high)
    theirs, mine = art(rows, {"epsilon": epsilon, "epsilon_high": epsilon_high}, "mean"), ours(rows, weights, "mean")
    assert mine[0] == pytest.approx(theirs[0], abs=TOLERANCE)
    torch.testing.assert_close(mine[1], theirs[1], atol=TOLERANCE, rtol=0)


def test_only_our_guard_of_negative_advantages_differs(art: Oracle) -> None:
    rows = packed_rows(3, 0.5)
    guarded, theirs = ours(rows, LossWeights(0.0, 0.0), "sum")[1], art(rows, {}, "sum")[1]
    differs = (guarded - theirs).abs() > TOLERANCE
    assert differs.any() and (guarded[differs] == 0).all()
    new, advantages = torch.tensor(rows["new_logprobs"]), torch.tensor(rows["advantages"]).roll(-1, 1)
    recorded = torch.tensor(rows["logprobs"]).roll(-1, 1)
    assert (advantages[differs] < 0).all() and (new[differs] < math.log(LossWeights(0.0, 0.0).stale_probability)).all()
    assert recorded[differs].isnan().all()


@pytest.fixture
def policy(tiny_base: Path, tmp_path: Path) -> Policy:
    """Base and adapter in float32, the adapter's weights with gradients."""
    loaded = Policy.load(tiny_base, make_adapter(tiny_base, tmp_path / "adapter"), dtype=torch.float32)
    for name, weight in loaded.model.named_parameters():
        weight.requires_grad_("lora_" in name)
    return loaded


def lesson_items(policy: Policy) -> list[Item]:
    """Ticks of several agents, answers in free text among them; half of the sequences have what the server recorded."""
    rng = random.Random(0)
    free = [make_sequence(f"I would {word}.", 0.4 * sign, news=GOOD, response_format=None, agent_id=f"free-{sign}") for word, sign in
            (("buy", 1), ("sell", -1))]  # fmt: skip
    items, left_out = make_items(policy.tokenizer, [*make_lesson(2), make_sequence(BUY, -0.7, agent_id="late"), *free])
    assert not left_out
    return [
        replace(item, served_t=tuple(-rng.expovariate(0.5) if trains else 0.0 for trains in item.encoded.trainable_t)) if n % 2 else item
        for n, item in enumerate(items)
    ]


def test_the_trainers_loss_and_gradients_are_arts(art: Oracle, policy: Policy) -> None:
    items = lesson_items(policy)
    scored = branch_logprobs(policy.model, [item.encoded for item in items])
    width = scored.logprobs.shape[1]

    def padded(values: tuple[float, ...]) -> list[float]:
        return [0.0, *(NAN if math.isnan(value) else value for value in values), *[0.0] * (width - len(values))]

    rows: Rows = {
        "new_logprobs": [[*row, 0.0] for row in scored.logprobs.tolist()],
        "logprobs": [padded(item.served_t) for item in items],
        "assistant_mask": [padded(tuple(map(float, item.encoded.trainable_t))) for item in items],
        "advantages": [[item.advantage] * (width + 1) for item in items],
        "weights": [[item.token_weight] * (width + 1) for item in items],
    }
    loss, gradient = art(rows, {}, "mean")
    packed = PackedPolicy(policy.model)
    theirs = torch.autograd.grad(scored.logprobs, list(packed.parameters.values()), grad_outputs=gradient[:, :-1])

    run = IterationRun(packed, items, make_iteration([]), Settings(_env_file=None), ART_WEIGHTS)
    found = run.gradients(pack([item.encoded for item in items]))
    assert found["loss"] == pytest.approx(loss, abs=TOLERANCE)
    assert max(float(one.abs().max()) for one in theirs) > 1e-2
    for parameter, expected in zip(packed.parameters.values(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=TOLERANCE, rtol=TOLERANCE)
