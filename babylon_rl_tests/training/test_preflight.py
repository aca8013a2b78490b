"""What pre-flight found, in words; on the CPU tokens by hour, and what cannot train by reason, with the tokenizer alone."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.training.backends.cpu.policy import IN_WORDS, plan_items
from babylon_rl.training.backends.cpu.trainer import CpuTrainer
from babylon_rl.training.backends.protocol import TrainPlan, TrainSequence
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.conversion import preflight_lines
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.remote_play import HOURS, PLAYED_NOW
from babylon_rl_tests.training.sequences import UNTRAINABLE, ignore, make_iteration, make_lesson

FOUND = {
    "sequences": 60, "episodes": 10, "groups": 2, "scriptedShare": 0.4, "logprobShare": 0.6, "trainableTokens": 733, "spread": None,
    "stalenessVersions": {}, "leftOut": {"leak": 2, "an empty response": 1},
    "groupsDropped": {"no spread of scores": 3, "leak": 1},
}  # fmt: skip


def test_what_was_left_out_has_its_unit():
    assert preflight_lines(FOUND, "v1.0.0")[1:] == [
        "  Left out: 2 sequences (leak)",
        "  Left out: 1 sequence (an empty response)",
        "  Left out: 3 groups (no spread of scores)",
        "  Left out: 1 group (leak)",
    ]


def test_pre_flight_counts_what_would_train_with_the_tokenizer_alone(cpu_settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    lesson = [*make_lesson(2), *(replace(one, window="2025-11-15T09:00") for one in UNTRAINABLE.values())]
    without_weights = tmp_path / "base"
    shutil.copytree(tiny_base, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    plan = plan_of(without_weights, lesson)
    (tmp_path / "out").mkdir()
    result = CpuTrainer(cpu_settings, threads=1).train(make_iteration(lesson), None, tmp_path / "out", ignore)
    assert (plan.trainable_tokens, plan.sequences) == (result.trainable_tokens, result.sequences)
    assert {window: plan.trains(window) for window in ("2025-11-15T00:00", "2025-11-15T01:00", "2025-11-15T09:00")} == {
        "2025-11-15T00:00": True, "2025-11-15T01:00": True, "2025-11-15T09:00": False,
    }  # fmt: skip
    assert plan.untrained == dict.fromkeys(IN_WORDS.values(), 1)
    assert "longer than 1,536 tokens, prompt and answer" in plan.untrained


def test_pre_flight_says_what_to_do_when_nothing_trains(tiny_base: Path) -> None:
    plan = plan_of(tiny_base, [UNTRAINABLE["too_long"], UNTRAINABLE["no_choice"]])
    assert plan.trainable_tokens == 0 and plan.sequences == 0
    for words in ("1 longer than 1,536 tokens", "1 whose schema allows one answer alone", "Record prompts that fit"):
        assert words in plan.cure


def plan_of(base: Path, sequences: list[TrainSequence]) -> TrainPlan:
    from transformers import AutoTokenizer

    return plan_items(AutoTokenizer.from_pretrained(base), sequences)


OTHER_SPACING = """UPDATE trajectories SET "stepsJson" = replace("stepsJson", '{\\"action\\": ', '{\\"action\\":') WHERE "windowId" = %s"""


@pytest.mark.long
def test_an_hour_whose_answers_no_schema_allows_leaves_the_batch_and_the_other_one_trains(
    played: Connection, cpu_settings: Settings
) -> None:
    settings = cpu_settings.model_copy(update={"iterations": 2, "epochs": 2, "windows_per_iteration": 1, "lookback_hours": 24})
    played.execute(OTHER_SPACING, [HOURS[1]])
    batch = freeze(played, settings, PLAYED_NOW).batch
    assert batch is not None and set(batch.windows) == set(HOURS)
    prepare_batch(played, batch.batch_id, settings, PLAYED_NOW)
    ended = train_batch(played, batch.batch_id, settings, PLAYED_NOW, CpuTrainer(settings, threads=1))
    assert [step.windows for step in ended.steps] == [[HOURS[0]]] * 2
    found = ended.batch.preflight
    assert found is not None and found["trainableTokens"] == ended.steps[0].trainable_tokens
    assert found["untrained"] == {"whose answer is not one that their schema allows": 60}
    assert {e.window for e in read_batch_episodes(played, batch.batch_id) if e.dropped is None} == {HOURS[0]}
