"""The trust region around the parent, and collapses over the whole batch and by kind of prompt, on a tiny random model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from babylon_rl.models.checkpoints import WEIGHTS
from babylon_rl.models.scoring import Distributions
from babylon_rl.settings import Settings
from babylon_rl.training.backends.cpu import PARENT_BOUND, TURNED_SHARE, bounds
from babylon_rl.training.backends.cpu.bounds import (
    KIND_PROMPTS,
    action_shares,
    read,
    weighted_kl,
)
from babylon_rl.training.backends.cpu.policy import Pack, PackedPolicy, choices, load_policy, make_items, pack
from babylon_rl.training.backends.cpu.trainer import (
    ENTROPY_BONUSES,
    FINAL_RATE_SHARE,
    KL_STEPS,
    LEARNING_RATES,
    LEARNING_RATES_OF_ALL,
    CpuTrainer,
    of_generation,
    within_reach,
)
from babylon_rl.training.backends.protocol import IterationResult, StepMetrics, TrainSequence
from babylon_rl_tests.training.sequences import BUY, GOOD, HOLD, make_iteration, make_lesson, make_sequence

pytestmark = pytest.mark.slow


@pytest.fixture
def parent(cpu_settings: Settings, tmp_path: Path) -> Path:
    """A version of the first generation, after one pass."""
    train(cpu_settings.model_copy(update={"epochs": 1}), tmp_path / "parent", make_lesson(2))
    return tmp_path / "parent"


def train(
    settings: Settings, out: Path, sequences: list[TrainSequence], origin: Path | None = None, *, before: Path | None = None,
    generation: int = 2, passes: int = 1, threads: int = 1, told: list[StepMetrics] | None = None,
) -> IterationResult:  # fmt: skip
    """Train a child of ``origin``; its second iteration after the one in ``before``."""
    out.mkdir()
    iteration = make_iteration(sequences, 2 if before else 1, 2 if before else 1, passes=passes)
    iteration = replace(iteration, generation=generation if origin else 1, origin=origin)
    return CpuTrainer(settings, threads).train(iteration, before or origin, out, (told if told is not None else []).append)


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()


def test_a_child_that_would_leave_its_parent_is_slowed_and_steps_back(cpu_settings: Settings, parent: Path, tmp_path: Path) -> None:
    fast, told = cpu_settings.model_copy(update={"learning_rate": 0.03, "kl_penalty": 0.0}), list[StepMetrics]()
    result = train(fast, tmp_path / "child", make_lesson(4), parent, passes=6, told=told)
    assert 0 < result.metrics["klParent"] <= PARENT_BOUND and 0 < result.metrics["stepBack"] < 1
    assert result.metrics["optimizerSteps"] == len(told) == told[-1].steps
    assert told[0].metrics["klParent"] == pytest.approx(0.0, abs=1e-4)
    # No step moves the policy once the last ones are beyond the bound together, however far one alone is.
    near = [one.metrics["klParent"] for one in told]
    beyond = [fmean(near[max(0, n - KL_STEPS) : n]) > PARENT_BOUND for n in range(1, len(near) + 1)]
    assert [one.metrics["learningRate"] == 0 for one in told] == beyond and any(beyond)
    # What is published is what was measured.
    assert kl_between(cpu_settings, tmp_path / "child", parent) == pytest.approx(result.metrics["klParent"], rel=0.02)


def test_the_rate_falls_where_the_kl_is_ahead_of_the_planned_rates() -> None:
    assert within_reach(0.0, 0.0) == within_reach(0.9, 0.0) == 1.0 and within_reach(0.0, -1e-9) == 1.0
    # Half of the way with half of the rates is as planned; with a quarter of them, two thirds of the rate are within reach.
    half = PARENT_BOUND / 4
    spent = {share: next(n / 1000 for n in range(1001) if planned(n / 1000) >= share) for share in (0.25, 0.5, 0.75)}
    assert [within_reach(spent[share], half) for share in spent] == pytest.approx([2 / 3, 1.0, 1.0], rel=0.01)
    assert within_reach(0.3, PARENT_BOUND) == within_reach(0.3, 2 * PARENT_BOUND) == 0.0


def planned(done: float) -> float:
    """Share of the planned rates, which fall in a line, that the steps until ``done`` have."""
    return done * (1 + 1 - (1 - FINAL_RATE_SHARE) * done) / (1 + FINAL_RATE_SHARE)


def kl_between(settings: Settings, child: Path, parent: Path) -> float:
    """Mean KL(child || parent) over the lesson of the test above; its choices weigh the same, as its episodes are alike in length."""
    found: list[dict[Pack, Distributions]] = []
    for directory in (child, parent):
        tokenizer, model = load_policy(Path(settings.local_base_model or ""), directory)
        items, _ = make_items(tokenizer, make_lesson(4))
        policy = PackedPolicy(model)
        found.append(read(policy, items, pack([item.encoded for item in items])))
    weight = sum(item.token_weight * item.encoded.trainable_tokens for item in items)
    return weighted_kl(found[0], found[1], items, policy.head) / weight


def test_a_child_within_the_region_goes_its_whole_way_and_the_first_generation_has_no_parent(
    cpu_settings: Settings, parent: Path, tmp_path: Path
) -> None:
    slow = cpu_settings.model_copy(update={"learning_rate": 1e-4})
    told: list[StepMetrics] = []
    near = train(slow, tmp_path / "child", make_lesson(4), parent, passes=2, told=told)
    assert near.metrics["stepBack"] == 0.0 and near.metrics["optimizerSteps"] == told[-1].steps
    first = train(slow, tmp_path / "first", make_lesson(2))
    assert not {"klParent", "stepBack", "turnedShare"} & first.metrics.keys()


def test_a_second_iteration_is_measured_from_the_parent_version(cpu_settings: Settings, parent: Path, tmp_path: Path) -> None:
    lesson, still = make_lesson(2), cpu_settings.model_copy(update={"learning_rate": 1e-30})
    first = train(cpu_settings, tmp_path / "1", lesson, parent, passes=2)
    second = train(still, tmp_path / "2", lesson, parent, before=tmp_path / "1")
    assert second.metrics["klParent"] == pytest.approx(first.metrics["klParent"], rel=1e-3) and first.metrics["klParent"] > 1e-4
    weights = [load_file(tmp_path / name / WEIGHTS) for name in ("1", "2")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_step_back_is_the_same_bytes_with_any_number_of_threads(cpu_settings: Settings, parent: Path, tmp_path: Path) -> None:
    fast = cpu_settings.model_copy(update={"learning_rate": 0.03})
    results = [train(fast, tmp_path / str(n), make_lesson(4), parent, passes=3, threads=n) for n in (1, 4)]
    assert results[0].metrics["stepBack"] == results[1].metrics["stepBack"] > 0
    assert digest(tmp_path / "1") == digest(tmp_path / "4")


@pytest.mark.parametrize("generation", [1, 2, 3, 7])
def test_rate_and_entropy_bonus_follow_from_the_generation(cpu_settings: Settings, parent: Path, tmp_path: Path, generation: int) -> None:
    rates = of_generation(LEARNING_RATES, generation), of_generation(LEARNING_RATES_OF_ALL, generation)
    for name, epochs, given, expected in (("one pass", 1, None, rates[0]), ("two", 2, None, rates[1]), ("set", 1, 4e-4, 4e-4)):
        told: list[StepMetrics] = []
        settings = cpu_settings.model_copy(update={"learning_rate": given, "epochs": epochs})
        train(settings, tmp_path / name, make_lesson(1), parent if generation > 1 else None, generation=generation, told=told)
        assert told[0].metrics["learningRate"] == expected
    assert [of_generation(LEARNING_RATES, n) for n in (1, 2, 3, 7)] == [3e-3, 3e-4, 3e-4, 3e-4]
    assert [of_generation(LEARNING_RATES_OF_ALL, n) for n in (1, 2)] == [2e-3, 3e-4]
    assert [of_generation(ENTROPY_BONUSES, n) for n in (1, 2, 7)] == [0.05, 0.03, 0.03]


def test_the_kl_is_exact_under_grammars_and_in_free_text() -> None:
    torch.manual_seed(0)
    head, policy, other = torch.randn(7, 4), torch.randn(4, 4), torch.randn(4, 4)
    for legal in ([(1, 4), None, (0, 2, 6), None], [(1, 4)] * 4, [None] * 4):
        here, there = (Distributions.of(hidden, head, legal) for hidden in (policy, other))
        among = [head if tokens is None else head[list(tokens)] for tokens in legal]
        ours, theirs = ([(rows @ hidden[n]).log_softmax(-1) for n, rows in enumerate(among)] for hidden in (policy, other))
        exact = torch.stack([(own.exp() * (own - its)).sum() for own, its in zip(ours, theirs, strict=True)])
        torch.testing.assert_close(here.kl_from(there, head), exact)


def kinds(
    tiny_base: Path, parent_n: Sequence[int], policy_n: Sequence[float], weight_n: Sequence[float] = ()
) -> tuple[dict[int, float], float | None]:
    """Shares of actions where the parent's likeliest action of prompt n is number ``parent_n[n]``, and action 0 has ``policy_n[n]`` now.

    Prompt n weighs ``weight_n[n]`` times as much as it would, by default 1.
    """
    tokenizer, _ = load_policy(tiny_base, None)
    # Two answers to each prompt: a prompt counts once.
    lesson = [make_sequence(answer, news=f"{GOOD} {n}", agent_id=f"agent-{n}") for n in range(len(parent_n)) for answer in (BUY, HOLD)]
    items, _ = make_items(tokenizer, lesson)
    items = [replace(item, token_weight=item.token_weight * (weight_n or [1.0] * len(parent_n))[n // 2]) for n, item in enumerate(items)]
    order = {items[n].encoded.prompt_ids: n // 2 for n in range(len(items))}
    found = []
    for given_n in (policy_n, [0.9 if n == 0 else 0.05 for n in parent_n]):
        at = {}
        for row in pack([item.encoded for item in items]):
            spots = choices(row, items)
            legal_bm = torch.full((len(spots), 16), float("-inf"))
            for place, (_, n, t) in enumerate(spots):
                legal, first = items[n].encoded.legal_t[t] or (), given_n[order[items[n].encoded.prompt_ids]]
                legal_bm[place, : len(legal)] = torch.tensor([first, *[(1 - first) / (len(legal) - 1)] * (len(legal) - 1)]).log()
            at[row] = Distributions(list(range(len(spots))), legal_bm, torch.empty(0, 4))
        found.append(at)
    return action_shares(items, found[0], found[1])


def test_a_kind_of_prompt_that_is_turned_shows_though_no_action_has_the_whole_policy(tiny_base: Path) -> None:
    half = [0] * KIND_PROMPTS + [1] * KIND_PROMPTS
    shares, turned = kinds(tiny_base, half, [0.95] * KIND_PROMPTS + [0.9] * KIND_PROMPTS)
    assert max(shares.values()) == pytest.approx(0.925) and turned == pytest.approx(0.9)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_prompt_that_stands_for_three_counts_as_three(tiny_base: Path) -> None:
    few = KIND_PROMPTS // 2
    policy = [0.9] * few + [0.3] * few
    shares, turned = kinds(tiny_base, [1] * 2 * few, policy, [1.0] * few + [3.0] * few)
    every, turned_of_all = kinds(tiny_base, [1] * 4 * few, policy + [0.3] * 2 * few)
    assert shares == pytest.approx(every) and turned == pytest.approx(turned_of_all) == pytest.approx(0.45)


def test_a_child_that_turned_a_kind_of_prompt_steps_back_within_the_bound(
    cpu_settings: Settings, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = cpu_settings.model_copy(update={"learning_rate": 0.002, "kl_penalty": 0.0})
    lesson = make_lesson(4)
    monkeypatch.setattr(bounds, "KIND_PROMPTS", 1)
    whole = train(fast, tmp_path / "whole", lesson, parent)
    turned = whole.metrics["turnedShare"]
    assert whole.metrics["stepBack"] == 0 < turned < TURNED_SHARE
    before = train(fast.model_copy(update={"learning_rate": 1e-30}), tmp_path / "still", lesson, parent).metrics["turnedShare"]
    bound = (before + turned) / 2
    assert before < bound < turned
    monkeypatch.setattr(bounds, "TURNED_SHARE", bound)
    back = train(fast, tmp_path / "back", lesson, parent)
    assert before < back.metrics["turnedShare"] <= bound and 0 < back.metrics["stepBack"] < 1
    assert back.metrics["klParent"] < whole.metrics["klParent"]


def test_a_policy_that_follows_its_parent_is_not_turned_and_a_few_prompts_are_no_kind(tiny_base: Path) -> None:
    _, turned = kinds(tiny_base, [0] * KIND_PROMPTS + [1] * KIND_PROMPTS, [0.95] * KIND_PROMPTS + [0.05] * KIND_PROMPTS)
    assert turned is not None and turned < TURNED_SHARE
    assert kinds(tiny_base, [1] * (KIND_PROMPTS - 1), [0.9] * (KIND_PROMPTS - 1))[1] is None
