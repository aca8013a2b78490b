"""The decoder of rows, and the joining of an hour's rows and logged calls to episodes.

Inputs are UTF-8, as all texts of the database are; bytes that are none become U+FFFD.
"""

import json
from collections.abc import Sequence
from datetime import timedelta

from hypothesis import given

from babylon_rl.episodes.decode import Fault, Step, decode
from babylon_rl.episodes.quality import row_faults, sample_quality
from babylon_rl.episodes.reading import by_agent, episode
from babylon_rl.episodes.trajectories import (
    SequenceRules,
    StepPlaces,
    embedded_sequences,
    reduced,
    synthetic_sequences,
    with_logs,
)
from babylon_rl.judge.prompt.injection import escaped, find_flags
from babylon_rl.judge.prompt.privacy import PrivateFields, name_replacer
from babylon_rl.judge.prompt.render import _recorded, keys_and_texts, render_steps
from babylon_rl.judge.prompt.request import condense, in_full
from babylon_rl.market.correctness import intent
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow
from babylon_rl.types import Episode, Trajectory
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.rows import START, WINDOW

RULES = SequenceRules(frozenset({"action", "reasoning"}), True)


def row(number: int, steps: bytes) -> TrajectoryRow:
    return TrajectoryRow(
        trajectory_id=f"t{number}", agent_id=f"a{number % 2}", start_time=START + timedelta(minutes=number),
        end_time=START + timedelta(minutes=number + 1), window_id=WINDOW, window_hours=1, scenario_id=WINDOW, final_pnl=None,
        is_training_data=True, is_evaluation=False, used_in_training=False, metrics_json=b"{}", steps_json=steps,
    )  # fmt: skip


def check_decoding(raw: bytes) -> None:
    """A text is the same steps with texts and without, or the same fault."""
    raw = raw.decode(errors="replace").encode()
    list(row_faults(row(0, raw)))
    assert 0.0 <= sample_quality([(row(0, raw), [])]).mean <= 1.0
    texts, numbers = decode(row(0, raw)), decode(row(0, raw), texts=False)
    if isinstance(texts, Fault) or isinstance(numbers, Fault):
        assert texts == numbers and texts.detail
        return
    json.loads(raw)
    assert texts.end_pnl == numbers.end_pnl and len(texts.recorded) == len(numbers.recorded) >= len(texts.completed)
    assert [step.environment_state for step in texts.completed] == [step.environment_state for step in numbers.completed]
    counted, whole = reduced(row(0, raw), numbers, RULES), reduced(row(0, raw), texts, RULES)
    assert counted == whole
    if whole.message_source == "embedded":
        served = embedded_sequences(whole, texts.completed, RULES)
        assert len(served.sequences) == whole.trainable_sequences
        json.dumps([one.messages for one in served.sequences], ensure_ascii=False).encode()
    check_rendering(texts.completed)


def check_rendering(steps: Sequence[Step]) -> None:
    """Steps are texts for a judge, however short they must be."""
    for step in steps:
        intent(step.action.action_type, bytes(step.action.parameters))
    recorded = _recorded(steps, [step.llm_calls or () for step in steps], [0] * len(steps), {})
    keys_and_texts(recorded)
    for private in (PrivateFields(), PrivateFields(dict.fromkeys(("parameters", "result", "posts", "state", "user_prompt"), "hash"), b"s")):
        rendered = render_steps(recorded, name_replacer("a0", {"a1": ("Ann",)}, {}, ()), private)
        whole = in_full(rendered, len)
        for one in (whole, condense(whole, rendered, whole.tokens // 2, len), condense(whole, rendered, 10, len)):
            assert all(flag.kind for flag in find_flags(one.text, "a0"))
            escaped(one.text).encode()


def check_stitching(raw: bytes) -> None:
    """The parts between null bytes are rows, or calls of the log; they make the same episodes in any order."""
    parts = raw.decode(errors="replace").encode().split(b"\0")[:8]
    rows = [part for part in parts if part.lstrip()[:1] == b"["]
    logs = [log(number, part) for number, part in enumerate(part for part in parts if part.lstrip()[:1] != b"[")]
    read = [one for number, steps in enumerate(rows) if (one := trajectory(row(number, steps), logs)) is not None]
    found = joined(read)
    assert found == joined(list(reversed(read)))
    assert sum(one.steps for one in found) == sum(one.steps for one in read)
    for one in found:
        assert len(one.sequences) == one.trainable_sequences or one.message_sources["synthetic"]
        assert one.wins + one.losses <= len(one.trajectory_ids) and sum(one.message_sources.values()) == len(one.trajectory_ids)


def joined(read: list[Trajectory]) -> list[Episode]:
    return [episode(own, 1) for own in by_agent(read)]


def trajectory(of: TrajectoryRow, logs: list[CallLogRow]) -> Trajectory | None:
    """A row as `read_window` reads it, its logged calls given."""
    decoded = decode(of)
    if isinstance(decoded, Fault):
        return None
    whole = reduced(of, decoded, RULES)
    if whole.message_source == "embedded":
        return embedded_sequences(whole, decoded.completed, RULES)
    if not logs:
        return synthetic_sequences(whole, decoded.completed)
    held = whole, StepPlaces.of(decoded.recorded)
    counted, found = with_logs(*held, logs, RULES, texts=False), with_logs(*held, list(reversed(logs)), RULES, texts=True)
    assert (counted.content, counted.trainable_sequences) == (found.content, found.trainable_sequences)
    return found


def log(number: int, part: bytes) -> CallLogRow:
    text = part.decode(errors="replace")
    return CallLogRow(
        trajectory_id="t0", step_id=text[:40], call_id=f"c{number}", timestamp=START + timedelta(seconds=number), model="m",
        purpose="action", system_prompt="", user_prompt=text[:5], messages_json=part, response=text, metadata=part,
    )  # fmt: skip


def test_every_kept_row_is_decoded_or_refused_the_same_with_texts_and_without() -> None:
    for raw in corpus("decode"):
        check_decoding(raw)


@repeatable(200)
@given(odd_bytes("decode"))
def test_any_text_of_a_row_is_steps_or_a_fault(raw: bytes) -> None:
    check_decoding(raw)


def test_every_kept_hour_is_the_same_episodes_in_any_order() -> None:
    for raw in corpus("stitch"):
        check_stitching(raw)


@repeatable(200)
@given(odd_bytes("stitch"))
def test_any_hour_is_the_same_episodes_in_any_order(raw: bytes) -> None:
    check_stitching(raw)
