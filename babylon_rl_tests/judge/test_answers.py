"""Judges' answers: lenient in form, strict in content."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.judge.answers import LASTING, MOST_EXPLANATION, AnswerFault, EpisodeVerdict, read_answer
from babylon_rl_tests.repeatable import repeatable

IDS = ("a1", "b2", "c3")
GOOD = {"scores": [{"id": "b2", "score": 0.25, "explanation": "Late."}, {"id": "a1", "score": 1, "explanation": "Early."},
                   {"id": "c3", "score": 0, "explanation": "Never."}]}  # fmt: skip
PLAIN = json.dumps(GOOD)
VERDICTS = {"a1": EpisodeVerdict(1.0, "Early."), "b2": EpisodeVerdict(0.25, "Late."), "c3": EpisodeVerdict(0.0, "Never.")}


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        json.dumps(GOOD, indent=2),
        f"```json\n{PLAIN}\n```",
        f"```\n{PLAIN}\n```",
        f"Here are {{my}} scores [as asked]:\n{PLAIN}\nI hope this helps {{}}.",
        f"<think>b2 is {{late}}, a1 [early]</think>{PLAIN}",
        PLAIN.replace("}]}", "},],}"),
        json.dumps([GOOD]),
        json.dumps(GOOD["scores"]),
        json.dumps({"scores": {entry["id"]: entry for entry in GOOD["scores"]}}),
        PLAIN.replace("0.25", '"0.25"').replace(": 1,", ': "1",'),
        PLAIN.replace("0.25", r'"\u001f.25"'),
        PLAIN.replace('"id"', '"rank": 1, "id"'),
        f"{PLAIN}\n\nAs JSON again:\n```json\n{json.dumps(GOOD, indent=1)}\n```",
        "\ufeff" + PLAIN,
    ],
)  # fmt: skip
def test_an_answer_is_read_in_any_of_its_forms(text: str) -> None:
    found = read_answer(text, IDS)
    assert found == VERDICTS and list(found) == list(IDS)


DRAFT = PLAIN.replace("0.25", "0.5")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{DRAFT}</think>\n{PLAIN}",
        f"{DRAFT}\n</think>\n\n{PLAIN}",
        f'<think>Maybe {{"scores": [{{"id": "a1", "score": 0.2</think>{PLAIN}',
        f"<thinking>{DRAFT}</thinking>{PLAIN}",
        f"<think>{DRAFT}</think><think>{DRAFT}</think>```json\n{PLAIN}\n```",
        f"[THINK]{DRAFT}[/THINK]{PLAIN}",
        f"<Reasoning>{DRAFT}</Reasoning>{PLAIN}",
        f"◁think▷{DRAFT}◁/think▷{PLAIN}",
        f"<seed:think>{DRAFT}</seed:think>{PLAIN}",
        f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>{PLAIN}",
        f"<|START_THINKING|>{DRAFT}<|END_THINKING|>{PLAIN}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{PLAIN}",
        f"analysis I weigh them: {DRAFT} assistantfinal{PLAIN}",
        f"{DRAFT}\n<answer>{PLAIN}</answer>",
        f"{PLAIN}\n<think>{DRAFT}</think>",
        f'<think>[{{"id": "a1", "note": 1}}]</think>{PLAIN.replace("}]}", "},],}")}',
        f"<think>{'{' * 500}</think>{PLAIN}",
    ],
)
def test_a_draft_in_the_judges_thinking_is_no_answer(text: str) -> None:
    assert read_answer(text, IDS) == VERDICTS


@pytest.mark.parametrize("quoted", ["He wrote </think> himself.", "<think> is in it.", "[/THINK]<answer>", "</reasoning>", "◁/think▷"])
@pytest.mark.parametrize("around", ["{}", "Here: {}", "<think>Well.</think>{} Done."])
def test_a_tag_in_an_explanation_is_quoted(quoted: str, around: str) -> None:
    found = read_answer(around.format(PLAIN.replace("Late.", quoted)), IDS)
    assert found["b2"] == EpisodeVerdict(0.25, quoted)


@pytest.mark.parametrize(
    "text", [f"<think>{DRAFT}", f"<think>{DRAFT}</think>", f"{DRAFT}</think>", "<think>Hm", f"[THINK]{PLAIN}", "<|channel|>analysis"]
)
def test_an_answer_that_ends_in_thinking_is_a_lasting_fault(text: str) -> None:
    with pytest.raises(AnswerFault) as fault:
        read_answer(text, IDS)
    assert len(fault.value.faults) == 1 and fault.value.faults[0].startswith(LASTING)


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        ("5", "5"), ("-3", "-3"), ("1.0000001", "1.0000001"), ("NaN", '"NaN"'), ("Infinity", '"Infinity"'), ("-Infinity", '"-Infinity"'),
        ("true", "true"), ("null", "null"), ('"high"', '"high"'), ('"5"', '"5"'), ('"nan"', '"nan"'), ('"1/2"', '"1/2"'),
        ("[0.5]", "[0.5]"), ("1e400", "Infinity"), ('""', '""'), ('"0x1"', '"0x1"'), ('"٠.٥"', r'"\u0660.\u0665"'),
    ],
)  # fmt: skip
def test_a_score_must_be_a_number_from_0_to_1(score: str, shown: str) -> None:
    text = PLAIN.replace("0.25", score)
    with pytest.raises(AnswerFault) as fault:
        read_answer(text, IDS)
    assert fault.value.faults == (f"The score of b2 is {shown}, which is no number from 0 to 1.",)


def without(place: int, *names: str) -> str:
    entries = [dict(entry) for entry in GOOD["scores"]]
    for name in names:
        del entries[place][name]
    return json.dumps({"scores": entries})


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["The answer is empty."]),
        ("I cannot judge this.", ['The answer holds no JSON object with "scores".']),
        ("<!DOCTYPE html><html></html>", ['The answer holds no JSON object with "scores".']),
        (PLAIN[: len(PLAIN) // 2], ['The answer holds no JSON object with "scores".']),
        ('{"scores": []}', [f"The id {identity} is missing." for identity in IDS]),
        ('{"scores": null}', ['The answer holds no JSON object with "scores".']),
        (PLAIN.replace('"c3"', '"c4"'), ['There is no episode with the id "c4".', "The id c3 is missing."]),
        (PLAIN.replace('"c3"', '"a1"'), ["The id a1 is there more than once.", "The id c3 is missing."]),
        (PLAIN.replace('"c3"', "3"), ["Entry 3 is not an object with an id.", "The id c3 is missing."]),
        (PLAIN.replace('"c3"', '"C3"'), ['There is no episode with the id "C3".', "The id c3 is missing."]),
        (without(0, "score"), ["The score of b2 is missing."]),
        (without(0, "explanation"), ["The explanation of b2 is missing."]),
        (without(0, "score", "explanation"), ["The score of b2 is missing.", "The explanation of b2 is missing."]),
        (PLAIN.replace('"Late."', '" "'), ["The explanation of b2 is missing."]),
        (PLAIN.replace('"Late."', "7"), ["The explanation of b2 is missing."]),
        (f"{PLAIN} or rather {PLAIN.replace('0.25', '0.5')}", ["The answer holds 2 different lists of scores."]),
        ("[" * 100_000, ['The answer holds no JSON object with "scores".']),
        ("x" * 500_000, ["The answer has 500000 characters."]),
    ],
)
def test_faults_are_said_one_sentence_each(text: str, faults: list[str]) -> None:
    with pytest.raises(AnswerFault) as fault:
        read_answer(text, IDS)
    assert list(fault.value.faults) == faults and str(fault.value).startswith("The judge's answer cannot be used: ")


def test_an_unknown_id_is_quoted_in_few_ascii_characters() -> None:
    with pytest.raises(AnswerFault) as fault:
        read_answer(json.dumps({"scores": [{"id": "\u202e" + "x" * 500, "score": 1, "explanation": "y"}]}), ["a1"])
    assert len(fault.value.faults[0]) < 110 and "\\u202e" in fault.value.faults[0]


def test_faults_are_bounded() -> None:
    with pytest.raises(AnswerFault) as fault:
        read_answer('{"scores": []}', [str(number) for number in range(100)])
    assert len(fault.value.faults) == 21 and fault.value.faults[-1] == "And 80 more."


def test_an_explanation_is_bounded() -> None:
    text = json.dumps({"scores": [{"id": "a1", "score": 0.5, "explanation": "x" * 100_000}]})
    assert len(read_answer(text, ["a1"])["a1"].explanation) == MOST_EXPLANATION


@pytest.mark.slow
@repeatable(60)
@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_a_fault(text: str) -> None:
    with pytest.raises(AnswerFault):
        read_answer(text, IDS)


scores = st.floats(0, 1)


@pytest.mark.slow
@repeatable(60)
@given(st.dictionaries(st.text("abcdef0123456789", min_size=6, max_size=6), st.tuples(scores, st.text(min_size=1)), min_size=1, max_size=8))
def test_what_is_answered_is_what_is_read(given_verdicts: dict[str, tuple[float, str]]) -> None:
    entries = [{"id": identity, "score": score, "explanation": f"w{text}"} for identity, (score, text) in given_verdicts.items()]
    found = read_answer("Sure!\n```json\n" + json.dumps({"scores": entries[::-1]}) + "\n```", list(given_verdicts))
    assert {identity: verdict.score for identity, verdict in found.items()} == {key: score for key, (score, _) in given_verdicts.items()}
    assert all(verdict.explanation == f"w{given_verdicts[identity][1]}".strip() for identity, verdict in found.items())


def by_part(*marks: object) -> str:
    return json.dumps({"scores": [{"id": "a1", "explanation": "Early.", "marks": list(marks)}]})


def test_marks_of_parts_stand_for_a_score_which_is_their_mean() -> None:
    assert read_answer(by_part(0.2, "0.4", 0.9), ["a1"], 3) == {"a1": EpisodeVerdict(pytest.approx(0.5), "Early.", (0.2, 0.4, 0.9))}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (by_part(0.2, 0.4), "The entry of a1 holds 2 marks, not 3."),
        (by_part(0.2, 0.4, 0.5, 0.6), "The entry of a1 holds 4 marks, not 3."),
        (by_part(0.2, None, 7), "Mark 2 of a1 is null, which is no number from 0 to 1."),
        ('{"scores": [{"id": "a1", "explanation": "Early.", "score": 0.5}]}', "The entry of a1 holds 0 marks, not 3."),
    ],
)
def test_an_answer_without_all_marks_is_refused(answer: str, fault: str) -> None:
    with pytest.raises(AnswerFault) as refused:
        read_answer(answer, ["a1"], 3)
    assert refused.value.faults == (fault,)
