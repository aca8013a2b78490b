"""The reader of judges' answers."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.judge.answers import MOST_EXPLANATION, AnswerFault, read_answer
from babylon_rl_tests.fuzz.inputs import TEXTS, corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable

IDS = ("a1", "b2", "c3")


def check(text: str) -> None:
    """A text is three verdicts or none, and then the reasons are given."""
    try:
        found = read_answer(text, IDS)
    except AnswerFault as refused:
        assert refused.faults and all(refused.faults)
        return
    assert list(found) == list(IDS)
    for verdict in found.values():
        assert 0.0 <= verdict.score <= 1.0 and 0 < len(verdict.explanation.strip()) <= MOST_EXPLANATION


def check_bytes(raw: bytes) -> None:
    check(raw.decode(errors="replace"))
    check(raw.decode("latin-1"))


def test_every_kept_answer_is_read_or_refused_with_its_faults() -> None:
    for raw in corpus("judge"):
        check_bytes(raw)


@repeatable(300)
@given(odd_bytes("judge"))
def test_any_text_is_three_verdicts_or_none(raw: bytes) -> None:
    check_bytes(raw)


THINKING = st.sampled_from(
    ["", "<think>a1 leads.</think>", "a1 leads.</think>", '<thinking>{"scores": []}</thinking>', "<reasoning>[b2]</reasoning>\n"]
)
BEFORE, AFTER = st.sampled_from(["", "Here they are:\n", "```json\n", "```\n", "\ufeff"]), st.sampled_from(["", "\n```", "\nDone.", " \n"])
SAID = TEXTS.filter(lambda text: text.strip())


@repeatable(200)
@given(
    st.permutations(IDS), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(SAID, min_size=3, max_size=3), THINKING, BEFORE,
    AFTER, st.sampled_from([None, 2]), st.booleans(),
)  # fmt: skip
def test_verdicts_are_read_as_they_were_written(
    order: list[str], scores: list[float], said: list[str], thinking: str, before: str, after: str, indent: int | None, by_id: bool
) -> None:
    entries: list[dict[str, Any]] = [
        {"id": name, "score": score, "explanation": text} for name, score, text in zip(order, scores, said, strict=True)
    ]
    document = {"scores": {entry["id"]: entry for entry in entries} if by_id else entries}
    found = read_answer(f"{thinking}{before}{json.dumps(document, indent=indent)}{after}", IDS)
    assert {name: (verdict.score, verdict.explanation) for name, verdict in found.items()} == {
        entry["id"]: (entry["score"], entry["explanation"].strip()) for entry in entries
    }
