"""The CPU trainer on a tiny random model: it learns, repeats itself, resumes, and stops before it publishes nonsense."""

import hashlib
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from babylon_rl.errors import CheckpointError, Diverged, NothingToTrain
from babylon_rl.models.checkpoints import WEIGHTS, Manifest, RemoteCheckpoint, publish, verify, write_document
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.models.scoring import EncodedSequence, encode_sequence
from babylon_rl.settings import Settings
from babylon_rl.training.backends.cpu import RATIO_LIMIT
from babylon_rl.training.backends.cpu import policy as policy_module
from babylon_rl.training.backends.cpu.bounds import Measured, refuse_diverged
from babylon_rl.training.backends.cpu.policy import (
    PackedPolicy,
    as_pack,
    grouped,
    load_policy,
    make_items,
    pack,
    served_logprobs,
    tokens_of,
    trainable,
)  # fmt: skip
from babylon_rl.training.backends.cpu.trainer import (
    ENTROPY_BONUSES,
    LEARNING_RATES_OF_ALL,
    OPTIMIZER_STATE,
    CpuTrainer,
    IterationRun,
    optimizer_steps,
)
from babylon_rl.training.backends.protocol import STATE_PREFIX, IterationResult, StepMetrics, TrainIteration, TrainSequence, choose_trainer
from babylon_rl_tests.tiny_tokenizer import make_tokenizer
from babylon_rl_tests.training.sequences import (
    BAD,
    BUY,
    GOOD,
    HOLD,
    SCHEMA,
    SELL,
    UNTRAINABLE,
    ignore,
    make_iteration,
    make_lesson,
    make_messages,
    make_sequence,
)  # fmt: skip
from babylon_rl_tests.unpacked import branch_logprobs

pytestmark = pytest.mark.slow  # torch is imported


def trained(
    settings: Settings, out: Path, sequences: list[TrainSequence], *, parent: Path | None = None, step: int = 1, steps: int = 1,
    seed: int = 0, passes: int = 1, watch: Any = ignore,
) -> IterationResult:  # fmt: skip
    out.mkdir()
    return CpuTrainer(settings, threads=1).train(make_iteration(sequences, step, steps, seed, passes), parent, out, watch)


def digest(directory: Path, name: str = WEIGHTS) -> str:
    return hashlib.sha256((directory / name).read_bytes()).hexdigest()


def scores(base: Path, adapter: Path | None, asked: list[tuple[str, str]]) -> list[list[float]]:
    """The log-probability of each token with alternatives, of (news, answer) pairs, in float32."""
    policy = Policy.load(base, adapter, dtype=torch.float32)
    encoded = [encode_sequence(policy.tokenizer, make_messages(news), answer, SCHEMA) for news, answer in asked]
    with torch.no_grad():
        found = branch_logprobs(policy.model, [one for one in encoded if isinstance(one, EncodedSequence)])
    return [row[mask].tolist() for row, mask in zip(found.logprobs, found.mask, strict=True)]


def test_settings_choose_it_and_name_its_base(cpu_settings: Settings, tiny_base: Path) -> None:
    trainer = choose_trainer(cpu_settings)
    assert (trainer.name, trainer.base_model) == ("cpu", str(tiny_base))
    assert trainer.base_identity().name == str(tiny_base)


@pytest.mark.slow
def test_what_was_rewarded_becomes_likelier_and_what_was_punished_rarer(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    settings = cpu_settings.model_copy(update={"learning_rate": 5e-3})
    result = trained(settings, tmp_path / "out", make_lesson(), passes=6)
    asked = [(f"{GOOD} 99", BUY), (f"{BAD} 99", SELL), (f"{GOOD} 99", SELL), (f"{BAD} 99", BUY)]
    before, after = (
        [sum(one) for one in scores(tiny_base, adapter, [(news, answer) for news, answer in asked])] for adapter in (None, tmp_path / "out")
    )
    margin_before, margin_after = (s[0] + s[1] - s[2] - s[3] for s in (before, after))
    assert margin_after > margin_before + 0.5
    assert result.sequences == 36 and result.trainable_tokens > 0
    assert math.isfinite(result.loss) and result.metrics["topActionShare"] < 0.95


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(cpu_settings: Settings, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(cpu_settings, tmp_path / name, make_lesson(2), seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert digest(tmp_path / "a", OPTIMIZER_STATE) == digest(tmp_path / "b", OPTIMIZER_STATE)


def test_every_optimizer_step_is_told(cpu_settings: Settings, tmp_path: Path) -> None:
    told: list[StepMetrics] = []
    result = trained(cpu_settings, tmp_path / "out", make_lesson(4), passes=2, watch=told.append)
    count = told[-1].steps
    assert count >= 2 and count % 2 == 0
    assert [(one.iteration, one.step, one.steps) for one in told] == [(1, number, count) for number in range(1, count + 1)]
    assert {"entropy", "kl", "clipFraction", "gradientNorm", "learningRate", "tokensPerSecond"} == set(told[0].metrics)
    rates = [one.metrics["learningRate"] for one in told]
    assert rates[0] == LEARNING_RATES_OF_ALL[0] == CpuTrainer(cpu_settings).hyperparameters(1)["learning_rate"]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    assert told[-1].trainable_tokens == result.trainable_tokens
    assert result.metrics["optimizerSteps"] == count
    assert result.loss == pytest.approx(sum(one.loss for one in told) / count)


def test_how_far_the_policy_went_is_measured_without_a_penalty_too(cpu_settings: Settings, tmp_path: Path) -> None:
    free = cpu_settings.model_copy(update={"kl_penalty": 0.0})
    still = trained(free.model_copy(update={"learning_rate": 1e-30}), tmp_path / "still", make_lesson(1))
    moved = trained(free, tmp_path / "moved", make_lesson(1), passes=4)
    assert still.metrics["kl"] == pytest.approx(0.0, abs=1e-5) and moved.metrics["kl"] > 0.001


def test_a_line_of_several_passes_adapts_feed_forward_layers_and_keeps_its_modules(cpu_settings: Settings, tmp_path: Path) -> None:
    def modules(name: str, epochs: int, parent: Path | None = None) -> set[str]:
        trained(cpu_settings.model_copy(update={"epochs": epochs}), tmp_path / name, make_lesson(1), parent=parent)
        return {key.split(".")[-3] for key in load_file(tmp_path / name / WEIGHTS)}

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert modules("one", 1) == attention
    assert (two := modules("two", 2)) == attention | {"gate_proj", "up_proj", "down_proj"}
    assert modules("child", 2, tmp_path / "one") == attention
    assert modules("other", 1, tmp_path / "two") == two


@pytest.mark.parametrize(("step", "share"), [(1, 0.25), (2, 1.0)])
def test_the_first_iteration_warms_up(cpu_settings: Settings, tmp_path: Path, step: int, share: float) -> None:
    moved = []
    for warmup_steps in (0, 3):
        out = tmp_path / str(warmup_steps)
        told: list[StepMetrics] = []
        warm = cpu_settings.model_copy(update={"warmup_steps": warmup_steps})
        trained(warm, out, make_lesson(1), step=step, steps=2, watch=told.append)
        assert len(told) == 1
        moved.append(torch.cat([weights.flatten() for name, weights in load_file(out / WEIGHTS).items() if "lora_B" in name]))
    cold, warmed = moved  # lora_B begins at 0
    assert cold.abs().max() > 0
    torch.testing.assert_close(warmed.float(), share * cold.float(), rtol=0.02, atol=1e-7)


def test_batch_size_and_accumulation_decide_what_a_step_gathers(cpu_settings: Settings) -> None:
    packs = [as_pack([((1,), n) for n in range(3)])] * 24

    def sizes(**changes: int) -> list[tuple[int, int]]:
        steps = optimizer_steps(packs, cpu_settings.model_copy(update=changes))
        return [(len(step), sum(len(one.members) for one in step)) for step in steps]

    assert sizes() == [(8, 24)] * 3  # 4 sequences for each of 2 x 3 packs
    assert sizes(batch_size=1) == [(6, 18)] * 4
    assert sizes(gradient_accumulation_steps=1) == [(4, 12)] * 6
    assert sizes(batch_size=100) == [(24, 72)]


def test_gathered_gradients_are_those_of_one_big_batch(cpu_settings: Settings, tiny_base: Path) -> None:
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    items, _ = make_items(tokenizer, make_lesson(2))
    policy = PackedPolicy(model)
    run = IterationRun(policy, items, make_iteration([]), cpu_settings)
    few, many = pack([item.encoded for item in items]), pack([item.encoded for item in items], most_tokens=1)
    gradients = []
    for packs in (few, many):
        run.gradients(packs)
        gradients.append([one.grad for one in policy.parameters.values() if one.grad is not None])
        for one in policy.parameters.values():
            one.grad = None
    assert len(few) < len(many) == len(items)
    for packed, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-3)


def test_who_watches_may_stop_it_and_nothing_is_written(cpu_settings: Settings, tmp_path: Path) -> None:
    def cancel(_: StepMetrics) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(cpu_settings, tmp_path / "out", make_lesson(1), watch=cancel)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kl_penalty", [0.0, 0.05])
def test_the_number_of_threads_changes_no_byte(cpu_settings: Settings, tmp_path: Path, kl_penalty: float) -> None:
    settings, lesson = cpu_settings.model_copy(update={"kl_penalty": kl_penalty}), make_iteration(make_lesson(), passes=3)
    losses: dict[int, list[StepMetrics]] = {1: [], 4: []}
    for threads, steps in losses.items():
        out = tmp_path / str(threads)
        out.mkdir()
        CpuTrainer(settings, threads).train(lesson, None, out, steps.append)
    assert len(losses[1]) > 1 and [step.loss for step in losses[1]] == [step.loss for step in losses[4]]
    assert digest(tmp_path / "1") == digest(tmp_path / "4")


@pytest.mark.slow
def test_the_next_iteration_goes_on_from_weights_and_optimizer_state(cpu_settings: Settings, tmp_path: Path) -> None:
    lesson = make_lesson(2)
    trained(cpu_settings, tmp_path / "1", lesson, steps=2)
    trained(cpu_settings, tmp_path / "2", lesson, parent=tmp_path / "1", step=2, steps=2)
    assert adam_steps(tmp_path / "1") == {1.0} and adam_steps(tmp_path / "2") == {2.0}
    (tmp_path / "1" / OPTIMIZER_STATE).unlink()
    trained(cpu_settings, tmp_path / "forgetful", lesson, parent=tmp_path / "1", step=2, steps=2)
    assert adam_steps(tmp_path / "forgetful") == {1.0}
    assert digest(tmp_path / "forgetful") != digest(tmp_path / "2")


@pytest.mark.slow
def test_a_trainer_that_goes_on_and_a_new_one_give_the_same_bytes(cpu_settings: Settings, tmp_path: Path) -> None:
    settings, lesson = cpu_settings.model_copy(update={"epochs": 2, "kl_penalty": 0.05}), make_lesson(2)
    went_on = CpuTrainer(settings, 1)
    for trainer, name, step in ((went_on, "1", 1), (went_on, "2", 2), (CpuTrainer(settings, 1), "resumed", 2)):
        (tmp_path / name).mkdir()
        trainer.train(make_iteration(lesson, step, 2), tmp_path / "1" if step == 2 else None, tmp_path / name, ignore)
    assert digest(tmp_path / "2") == digest(tmp_path / "resumed") != digest(tmp_path / "1")


def test_a_model_in_training_answers_without_rows_too(tiny_base: Path) -> None:
    _, model = load_policy(tiny_base, None)
    PackedPolicy(model)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[:2] == (1, 3)


def test_layers_that_do_not_train_compute_a_token_once(cpu_settings: Settings, tiny_base: Path) -> None:
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    items, _ = make_items(tokenizer, make_lesson(2))
    policy, packs = PackedPolicy(model), pack([item.encoded for item in items], most_tokens=1)
    assert any(tokens_of(group) < sum(row.tokens for row in group) for group in grouped(packs))
    passes, gradients = list[int](), list[list[torch.Tensor]]()
    model.get_base_model().base_model.layers[0].register_forward_pre_hook(lambda *given: passes.append(1))
    computed = []
    # The second time with a negligible penalty, which needs the base's states.
    for kl_penalty in (0.0, 1e-30):
        run = IterationRun(policy, items, make_iteration([]), cpu_settings.model_copy(update={"kl_penalty": kl_penalty}))
        run.gradients(packs)
        computed.append(len(passes))
        gradients.append([one.grad for one in policy.parameters.values() if one.grad is not None])
        for one in policy.parameters.values():
            one.grad = None
    assert computed[0] == computed[1] > 0
    assert len(gradients[0]) == len(policy.parameters)
    for whole, upper in zip(*gradients, strict=True):
        torch.testing.assert_close(upper, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("most", [policy_module.KNOWN_BYTES, 40_000, 0])
def test_states_are_the_same_whatever_is_known_of_the_lower_layers(tiny_base: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "KNOWN_BYTES", most)
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    items, _ = make_items(tokenizer, make_lesson(2))
    policy, packs = PackedPolicy(model.eval()), pack([item.encoded for item in items])
    # The same sequences in other rows, and some of them alone.
    others = pack([item.encoded for item in items], most_tokens=1)
    first = policy.states(packs, items)
    for name, weights in policy.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    monkeypatch.setattr(policy_module, "KNOWN_BYTES", 0)
    anew = PackedPolicy(model)
    for known, wanted in zip(policy.states(packs, items), anew.states(packs, items), strict=True):
        torch.testing.assert_close(known, wanted)
    for rows in (others, others[::3]):  # in other rows float32 rounds differently
        for known, wanted in zip(policy.states(rows, items), anew.states(rows, items), strict=True):
            torch.testing.assert_close(known, wanted, atol=1e-4, rtol=1e-4)
    for moved, before in zip(policy.states(packs, items), first, strict=True):
        assert not torch.allclose(moved, before, atol=0.1)


def test_an_adapter_that_trains_more_than_layers_is_refused(tiny_base: Path) -> None:
    _, model = load_policy(tiny_base, None)
    model.get_base_model().model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"trains .*embed_tokens.* too"):
        PackedPolicy(model)


def test_a_pack_that_shares_nothing_begins_a_group_of_its_own() -> None:
    near = [as_pack([((*[1] * 200, n), n)]) for n in (2, 3)]
    apart = as_pack([((5,) * 100, 9)])
    assert grouped([*near, apart]) == [near, [apart]]
    assert grouped([apart, *near]) == [[apart, *near]]


def test_without_a_rate_to_speak_of_a_child_is_its_parent(cpu_settings: Settings, tmp_path: Path) -> None:
    trained(cpu_settings, tmp_path / "parent", make_lesson(1))
    still = cpu_settings.model_copy(update={"learning_rate": 1e-30})
    trained(still, tmp_path / "child", make_lesson(1), parent=tmp_path / "parent", step=2, steps=2, seed=7)
    parent, child = (load_file(tmp_path / name / WEIGHTS) for name in ("parent", "child"))
    assert parent.keys() == child.keys()
    for name in parent:
        torch.testing.assert_close(child[name], parent[name], atol=1e-20, rtol=0)


def test_a_new_version_begins_its_optimizer_anew(cpu_settings: Settings, tmp_path: Path) -> None:
    trained(cpu_settings, tmp_path / "parent", make_lesson(1))
    trained(cpu_settings, tmp_path / "child", make_lesson(1), parent=tmp_path / "parent", step=1)
    assert adam_steps(tmp_path / "child") == {1.0}


def adam_steps(directory: Path) -> set[float]:
    return {float(value) for name, value in load_file(directory / OPTIMIZER_STATE).items() if name.endswith(":step")}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("no adapter", "cannot be continued from"),
        ("not weights", "cannot be continued from"),
        ("at a service", "The parent is a:step3 at https://a, whose weights are not on this machine. Train there"),
    ],
)
def test_a_parent_that_cannot_be_continued_from_is_named(cpu_settings: Settings, tmp_path: Path, broken: str, said: str) -> None:
    parent = tmp_path / "parent"
    if broken == "not weights":
        trained(cpu_settings, parent, make_lesson(1))
        (parent / WEIGHTS).write_bytes(b"not safetensors")
    else:
        parent.mkdir()
    if broken == "at a service":
        url = "https://a"
        write_document(parent, RemoteCheckpoint(service=url, model="a", step=3, artifact="a:step3", inference_name="a", inference_url=url))
    with pytest.raises(CheckpointError, match=said):
        trained(cpu_settings, tmp_path / "out", make_lesson(1), parent=parent)


@pytest.mark.slow
def test_a_policy_that_collapses_into_one_action_is_not_written(cpu_settings: Settings, tmp_path: Path) -> None:
    greedy = cpu_settings.model_copy(update={"learning_rate": 0.05, "kl_penalty": 0.0})
    lesson = [
        make_sequence(answer, advantage, news=f"{GOOD} {tick}", agent_id=f"agent-{tick}-{advantage}")
        for tick in range(6)
        for answer, advantage in ((HOLD, 8.0), (BUY, -8.0), (SELL, -8.0))
    ]
    with pytest.raises(Diverged, match="collapsed. Nothing was published"):
        trained(greedy, tmp_path / "out", lesson, passes=12)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.long
def test_a_policy_far_from_its_base_is_not_written_though_nothing_penalizes_it(cpu_settings: Settings, tmp_path: Path) -> None:
    far = cpu_settings.model_copy(update={"learning_rate": 0.1, "kl_penalty": 0.0})
    lesson = [make_sequence("~" * 8, 8.0, news=f"{GOOD} {tick}", response_format=None, agent_id=f"agent-{tick}") for tick in range(12)]
    with pytest.raises(Diverged, match=r"nats a choice away from its base \(bound 4\)"):
        trained(far, tmp_path / "out", lesson, passes=60)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("kl", "share", "said"),
    [(4.1, 0.5, "4.10 nats"), (math.nan, 0.5, "nan nats"), (0.1, 0.951, "95% of the policy.*HOLD floor"), (3.9, 0.949, None)],
)
def test_the_bounds_of_what_is_published(kl: float, share: float, said: str | None) -> None:
    measured = Measured(kl, {1: share, 2: 1 - share})
    with pytest.raises(Diverged, match=said) if said else nullcontext():
        refuse_diverged(measured, 1)


def test_what_was_not_measured_is_not_told(cpu_settings: Settings, tmp_path: Path) -> None:
    lesson = [make_sequence(answer, side, response_format=None) for answer, side in ((BUY, 1.0), (SELL, -1.0))]
    free = trained(cpu_settings, tmp_path / "free", lesson)
    assert "topActionShare" not in free.metrics and free.metrics["kl"] >= 0
    assert "topActionShare" in trained(cpu_settings, tmp_path / "bound", make_lesson(1)).metrics


def test_a_loss_that_is_no_number_stops_the_training(cpu_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss nan"):
        trained(cpu_settings, tmp_path / "out", [make_sequence(BUY, math.nan), make_sequence(SELL, 1.0)])
    assert not any((tmp_path / "out").iterdir())


def test_what_cannot_train_is_counted_by_reason(cpu_settings: Settings, tmp_path: Path) -> None:
    result = trained(cpu_settings, tmp_path / "out", [*make_lesson(1), *UNTRAINABLE.values(), UNTRAINABLE["empty"]])
    counted = {name.removeprefix("leftOut_"): value for name, value in result.metrics.items() if name.startswith("leftOut_")}
    assert counted == dict.fromkeys(UNTRAINABLE, 1.0) | {"empty": 2.0}
    assert result.sequences == 6


def test_nothing_to_train_is_an_error_that_says_why(cpu_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NothingToTrain, match="not_in_grammar.*open_schema"):
        trained(cpu_settings, tmp_path / "out", list(UNTRAINABLE.values()))


def first_loss(settings: Settings, out: Path, sequences: list[TrainSequence]) -> StepMetrics:
    """What is told before anything was learned: the adapter is still that of the base."""
    told: list[StepMetrics] = []

    def enough(first: StepMetrics) -> None:
        told.append(first)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings.model_copy(update={"kl_penalty": 0.0}), out, sequences, watch=enough)
    return told[0]


def test_an_episode_weighs_the_same_whatever_its_length(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    short = [make_sequence(BUY, 1.0, news=f"{GOOD} 0", agent_id="agent-1")]
    long = [make_sequence(SELL, 2.0, news=f"{BAD} {tick}", agent_id="agent-1", window="2025-11-15T11:00") for tick in range(3)]
    told = first_loss(cpu_settings, tmp_path / "out", [*short, *long])
    (buy,), sells = scores(tiny_base, None, [(f"{GOOD} 0", BUY)]), scores(tiny_base, None, [(f"{BAD} {tick}", SELL) for tick in range(3)])
    flat = [value for one in sells for value in one]
    expected = -(1.0 * sum(buy) / len(buy) + 2.0 * sum(flat) / len(flat)) / 2 - ENTROPY_BONUSES[0] * told.metrics["entropy"]
    assert told.loss == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_recorded_log_probabilities_make_the_ratio_real(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_base)
    encoded = encode_sequence(policy.tokenizer, make_messages(GOOD), BUY, SCHEMA)
    assert isinstance(encoded, EncodedSequence)
    (now,) = scores(tiny_base, None, [(GOOD, BUY)])
    free = iter(now)
    served = [
        {"token": "?", "tokenId": token, "logprob": next(free) - math.log(2) if trains else 0.0}
        for token, trains in zip(encoded.response_ids, encoded.trainable_t, strict=True)
    ]
    cases = {
        "none": None, "twice as likely now": served, "another tokenizer's": [{**entry, "tokenId": 5} for entry in served],
        "no ids": [{**entry, "tokenId": None} for entry in served], "incomplete": served[:-1],
        "not numbers": [{**served[0], "logprob": None}, *served[1:]],
    }  # fmt: skip
    losses = {}
    for number, (name, logprobs) in enumerate(cases.items()):
        told = first_loss(cpu_settings, tmp_path / str(number), [make_sequence(BUY, 1.0, logprobs=logprobs)])
        losses[name] = told.loss + ENTROPY_BONUSES[0] * told.metrics["entropy"]
    assert losses["twice as likely now"] == pytest.approx(2 * losses["none"], rel=0.05)
    assert {losses[name] for name in ("another tokenizer's", "no ids", "incomplete", "not numbers")} == {losses["none"]}


def test_the_first_generation_pushes_no_answer_down_that_another_policy_gave(
    cpu_settings: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    tokenizer, model = load_policy(tiny_base, None, torch.float32)
    without_push = {}
    for generation in (1, 2):
        iteration = replace(make_iteration([]), generation=generation)
        for advantage in (-1.0, 1.0):
            items, _ = make_items(tokenizer, [make_sequence(BUY, advantage)])
            told = IterationRun(PackedPolicy(model), items, iteration, cpu_settings).gradients(pack([item.encoded for item in items]))
            without_push[generation, advantage] = told["clipFraction"]
    assert without_push == {(1, -1.0): 1.0, (1, 1.0): 0.0, (2, -1.0): 0.0, (2, 1.0): 0.0}


def test_a_token_that_became_likely_makes_the_ratio_large_and_not_the_clipped_one(
    cpu_settings: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    encoded = encode_sequence(Policy.load(tiny_base).tokenizer, make_messages(GOOD), BUY, SCHEMA)
    assert isinstance(encoded, EncodedSequence)
    free = iter(scores(tiny_base, None, [(GOOD, BUY)])[0])
    served = [
        {"token": "?", "tokenId": token, "logprob": next(free) - math.log(100) if trains else 0.0}
        for token, trains in zip(encoded.response_ids, encoded.trainable_t, strict=True)
    ]
    told = first_loss(cpu_settings, tmp_path / "out", [make_sequence(BUY, 1.0, logprobs=served)]).metrics
    assert told["ratio"] == pytest.approx(100, rel=0.05) and told["clippedRatio"] == RATIO_LIMIT
    assert told["servedKl"] == pytest.approx(100 - 1 - math.log(100), rel=0.05)


def test_what_the_policy_served_trains_at_a_ratio_of_one(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_base)
    (answer,) = policy.complete([CompletionRequest(make_messages(GOOD), SCHEMA, seed=3, max_tokens=80)])
    served = [{"token": "?", "tokenId": i, "logprob": p} for i, p in zip(answer.token_ids, answer.logprobs, strict=True)]
    recorded, plain = (
        first_loss(cpu_settings, tmp_path / name, [make_sequence(answer.text, 1.0, logprobs=logprobs)]).loss
        for name, logprobs in (("recorded", served), ("plain", None))
    )
    assert recorded == pytest.approx(plain, rel=0.05)


def test_the_adapter_becomes_a_checkpoint_that_verifies_and_answers(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    made, final = tmp_path / "made", tmp_path / "checkpoints" / "v1.0.0"
    trained(cpu_settings, made, make_lesson(2))
    assert {path.name for path in made.iterdir()} == {WEIGHTS, "adapter_config.json", OPTIMIZER_STATE}
    assert OPTIMIZER_STATE.startswith(STATE_PREFIX)
    (made / OPTIMIZER_STATE).unlink()
    identity = CpuTrainer(cpu_settings).base_identity()
    publish(made, final, Manifest(version="v1.0.0", base=identity, created_at="2025-11-15T12:00:00"))
    assert verify(final, tiny_base).version == "v1.0.0"
    policy = Policy.load(tiny_base, final, adapter_name="v1.0.0")
    answers = policy.complete(
        [CompletionRequest(make_messages(GOOD), SCHEMA, seed=seed, adapter="v1.0.0", max_tokens=80) for seed in range(4)]
    )
    assert all(isinstance(encode_sequence(policy.tokenizer, make_messages(GOOD), one.text, SCHEMA), EncodedSequence) for one in answers)


@pytest.mark.long
def test_the_packaged_model_trains_a_step(packaged_base: Path, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, train_rl_local=True, local_base_model=str(packaged_base))
    result = trained(settings, tmp_path / "out", make_lesson(1))
    assert result.trainable_tokens > 0 and math.isfinite(result.loss)


def test_the_iteration_knows_its_windows() -> None:
    assert TrainIteration("b", 1, make_lesson(2), 0).windows == ["2025-11-15T01:00", "2025-11-15T00:00"]


def test_a_cut_answer_keeps_its_recorded_probabilities_and_gets_no_end() -> None:
    tokenizer, text = make_tokenizer(), "I would buy som"
    ids = tokenizer.encode(text, add_special_tokens=False)
    recorded = [{"token": "", "tokenId": one, "logprob": -0.5 - number} for number, one in enumerate(ids)]
    recorded[1]["logprob"] = float("-inf")
    for end, reason in (([], "length"), ([], "content_filter"), ([tokenizer.eos_token_id], "stop")):
        entries = [*recorded, *({"token": "", "tokenId": one, "logprob": -0.25} for one in end)]
        sequence = make_sequence(text, response_format=None, logprobs=entries, finish_reason=reason)
        encoded = trainable(tokenizer, sequence)
        assert isinstance(encoded, EncodedSequence) and list(encoded.response_ids) == [*ids, *end]
        assert served_logprobs(sequence, encoded) == tuple(max(entry["logprob"], -9999.0) for entry in entries)


def test_a_chat_that_the_template_refuses_is_left_out_with_a_reason() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    assert trainable(tokenizer, make_sequence()) == "template"
