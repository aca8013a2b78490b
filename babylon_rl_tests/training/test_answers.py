"""Answer groups in the CPU trainer: weights by the improved policy, and the better answers become likelier."""

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from babylon_rl.judge.consensus import ADVANTAGE_SCALE
from babylon_rl.models.checkpoints import WEIGHTS
from babylon_rl.models.grammar import language
from babylon_rl.settings import Settings
from babylon_rl.training.backends.cpu.answers import (
    GAIN,
    LEAST_TARGET,
    MOST_TARGET,
    SURE,
    UNLIKELY,
    answer_logprob,
    targets_of,
    weigh_answers,
    weighed,
)
from babylon_rl.training.backends.cpu.bounds import AtChoices, at_choices, read, repacked, weighted_kl
from babylon_rl.training.backends.cpu.policy import Item, PackedPolicy, load_policy, make_items, pack
from babylon_rl.training.backends.cpu.trainer import CpuTrainer
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl_tests.training.sequences import BAD, BUY, GOOD, SCHEMA, SELL, ignore, make_iteration, make_lesson, make_sequence

pytestmark = pytest.mark.slow  # torch is imported
ANSWERS = language(SCHEMA["json_schema"]["schema"])


def group(news: str, right: str = BUY, *, best: float = 0.56, worst: float = 0.25, **changes: Any) -> list[TrainSequence]:
    """Every answer to one prompt: the right one scores best, its opposite worst."""
    scores = {right: best, {BUY: SELL, SELL: BUY}[right]: worst}
    return [make_sequence(text, 0.0, news=news, score=scores.get(text, 0.41), group=news, **changes) for text in ANSWERS]


def policy_of(base: Path, adapter: Path | None = None) -> tuple[Any, PackedPolicy]:
    tokenizer, model = load_policy(base, adapter)
    return tokenizer, PackedPolicy(model, 1)


def weigh(base: Path, sequences: list[TrainSequence]) -> tuple[list[Item], Counter[str]]:
    tokenizer, policy = policy_of(base)
    items, left_out = make_items(tokenizer, sequences)
    return weigh_answers(items, read_at(policy, items), left_out), left_out


def read_at(policy: PackedPolicy, items: list[Item]) -> AtChoices:
    return at_choices(read(policy, items, pack([item.encoded for item in items])), items)


def test_weights_are_those_of_the_policy_that_gains_most_within_its_distance(tiny_base: Path) -> None:
    tokenizer, policy = policy_of(tiny_base)
    items, left_out = make_items(tokenizer, [*group("a", best=0.45, worst=0.4), *group("b", SELL, best=0.45, worst=0.4)])
    at = read_at(policy, items)
    kept = weigh_answers(items, at, left_out)
    assert left_out[UNLIKELY] == len(items) - len(kept) and {item.advantage for item in kept} == {1.0}
    for name in ("a", "b"):
        own = [item for item in kept if item.group == name]
        whole = sum(item.encoded.trainable_tokens for item in kept) / 2
        assert sum(item.token_weight * item.encoded.trainable_tokens for item in own) == pytest.approx(whole)
        # The gain of a little more of an answer, less its cost in divergence, is the same for all: none could be traded for another.
        logprobs = [answer_logprob(item.encoded, at) for item in own]
        margins = [
            item.score / ADVANTAGE_SCALE - (math.log(item.token_weight) - logprob) / GAIN
            for item, logprob in zip(own, logprobs, strict=True)
        ]
        assert margins == pytest.approx([margins[0]] * len(own))
        assert max(logprobs) - min(logprobs) > 0.1  # they differ, so that the policy counts


def test_a_text_that_is_read_the_wrong_way_for_certain_is_corrected(tiny_base: Path) -> None:
    items, _ = make_items(policy_of(tiny_base)[0], [one for one in group("a") if one.response in (BUY, SELL)])
    (good, good_p), (bad, bad_p) = ((item, 0.01 if item.score > 0.5 else 0.99) for item in sorted(items, key=lambda item: -item.score))
    kept = {item.score: item.token_weight for item in weighed([good, bad], [math.log(good_p), math.log(bad_p)])[0]}
    # A policy gradient would weigh both by their probabilities, 1 to 99.
    assert kept[good.score] / kept[bad.score] == pytest.approx(math.exp(GAIN * 0.31 / ADVANTAGE_SCALE) / 99)
    # Hardly likely even so: left out, so that it costs no time.
    assert [item.score for item in weighed([good, bad], [math.log(LEAST_TARGET / 1000), 0.0])[0]] == [bad.score]


@pytest.mark.parametrize(("right", "target"), [(0.02, 0.256), (0.3, MOST_TARGET), (0.6, MOST_TARGET), (0.9, 0.95), (0.999, 0.9995)])
def test_the_target_of_a_right_answer_is_bounded(right: float, target: float) -> None:
    scores, chances = [0.56, 0.25, 0.41], [right, 0.3 * (1 - right), 0.7 * (1 - right)]
    logprobs = [math.log(chance) for chance in chances]
    targets = targets_of(logprobs, scores)
    assert targets[0] == pytest.approx(target, abs=0.005) and sum(targets) == pytest.approx(1)
    # With a lower gain it is still the policy, improved: the log-ratios to it are linear in the scores.
    ratios = [math.log(one) - logprob for one, logprob in zip(targets, logprobs, strict=True)]
    gain = (ratios[0] - ratios[1]) * ADVANTAGE_SCALE / (scores[0] - scores[1])
    assert 0 < gain <= GAIN + 1e-6 and (ratios[2] - ratios[1]) * ADVANTAGE_SCALE == pytest.approx(gain * (scores[2] - scores[1]))
    assert targets_of(logprobs, [0.4] * 3) == pytest.approx(chances)


def test_an_answer_group_weighs_as_much_as_an_episode(tiny_base: Path) -> None:
    lesson = make_lesson(2)
    alone, _ = weigh(tiny_base, lesson)
    items, _ = weigh(tiny_base, [*lesson, *group("a")])
    by_unit = Counter[str]()
    for item in items:
        by_unit[item.group] += item.token_weight * item.encoded.trainable_tokens
    episodes = len({(one.window, one.agent_id) for one in lesson})
    assert by_unit["a"] == pytest.approx(by_unit[""] / episodes)
    assert sum(by_unit.values()) == pytest.approx(sum(item.encoded.trainable_tokens for item in items))
    assert [item.advantage for item in items if not item.group] == [item.advantage for item in alone]


def test_a_group_without_one_of_its_answers_is_left_out_whole(tiny_base: Path) -> None:
    unfit = make_sequence("neither", 0.0, news="b", score=0.4, group="b")
    items, left_out = make_items(policy_of(tiny_base)[0], [*make_lesson(2), *group("a"), *group("b"), unfit])
    assert {item.group for item in items} == {"", "a"} and left_out.total() == len(ANSWERS) + 1


def test_one_sure_group_in_three_stands_for_all(tiny_base: Path) -> None:
    flat = [make_sequence(text, 0.0, news=f"flat {n}", score=0.4, group=f"flat {n}") for n in range(6) for text in ANSWERS]
    items, left_out = weigh(tiny_base, [*group("a"), *flat])
    assert {item.group for item in items} == {"a", "flat 0", "flat 3"} and left_out[SURE] == 4 * len(ANSWERS)
    by_group = Counter[str]()
    for item in items:
        by_group[item.group] += item.token_weight * item.encoded.trainable_tokens
    assert by_group["flat 0"] == by_group["flat 3"] == pytest.approx(3 * by_group["a"])


def test_better_answers_become_likelier_and_the_bytes_repeat(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    settings = cpu_settings.model_copy(update={"learning_rate": 5e-3})
    sequences = [one for tick in range(4) for one in [*group(f"{GOOD} {tick}"), *group(f"{BAD} {tick}", SELL)]]
    for name, threads in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        result = CpuTrainer(settings, threads).train(make_iteration(sequences, passes=4), None, tmp_path / name, ignore)
    assert len({hashlib.sha256((tmp_path / name / WEIGHTS).read_bytes()).digest() for name in ("one", "two")}) == 1
    # each group stands for the call that was played
    assert result.sequences == 8 and result.metrics["answers"] + result.metrics[f"leftOut_{UNLIKELY}"] == len(sequences)
    assert "ratio" not in result.metrics  # nothing of it was served

    expected = []
    for adapter in (None, tmp_path / "one"):
        tokenizer, policy = policy_of(tiny_base, adapter)
        items, _ = make_items(tokenizer, [*group(f"{GOOD} 99"), *group(f"{BAD} 99", SELL)])
        at = read_at(policy, items)
        expected.append(sum(math.exp(answer_logprob(item.encoded, at)) * item.score for item in items))
    assert expected[1] > expected[0] + 0.03


def test_the_pass_that_weighs_answers_is_that_of_the_trust_region(tiny_base: Path) -> None:
    tokenizer, policy = policy_of(tiny_base)
    items, left_out = make_items(tokenizer, [*make_lesson(2), *group("a"), *group("b", SELL)])
    at = read_at(policy, items)
    kept = weigh_answers(items, at, left_out)
    packs = pack([item.encoded for item in kept])
    assert left_out[UNLIKELY] and len(kept) < len(items)
    arranged, anew = repacked(at, packs, kept, policy.head), read(policy, kept, packs)
    weight = sum(item.token_weight * item.encoded.trainable_tokens for item in kept)
    assert weighted_kl(anew, arranged, kept, policy.head) / weight == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for row, one in anew.items():
            torch.testing.assert_close(arranged[row].open_od.float(), one.open_od.float(), atol=1e-4, rtol=1e-4)
