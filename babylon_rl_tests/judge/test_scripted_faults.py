"""Every fault of the scripted judge is what it says, over real HTTP; asking again may cure it."""

import json
import time
from typing import Any

import httpx2
import pytest

from babylon_rl_tests.judge.scripted_server import Judge, asked
from babylon_rl_tests.scripted_judge.judge import CONTENT_FAULTS, FAULTS, REFUSALS, ScriptedJudge, every_fault, fault_of

QUESTION = asked("skill=0.1", "skill=0.6", "skill=0.9")
SOUND = {"e0": 0.1, "e1": 0.6, "e2": 0.9}


def spoilt(judge: Judge, fault: str, **changes: Any) -> httpx2.Response:
    return judge.post(QUESTION, faults={fault: 1}, **changes)


def content(judge: Judge, fault: str) -> str:
    answer = spoilt(judge, fault).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    text: str = answer["message"]["content"]
    return text


def entries(judge: Judge, fault: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(content(judge, fault))["scores"]
    return found


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("rate-limit", 429, "rate_limit_exceeded"), ("server-error", 500, "server_error"), ("unavailable", 503, "overloaded"),
        ("bad-key", 401, "invalid_api_key"), ("unknown-model", 404, "model_not_found"), ("bad-request", 400, "context_length_exceeded"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_status(judge: Judge, fault: str, status: int, code: str) -> None:
    answer = spoilt(judge, fault, retry_after_s=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


def test_a_time_out_is_a_request_that_nobody_answers(judge: Judge) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        spoilt(judge, "time-out", timeout_s=0.3)
    for _ in range(200):
        if judge.stats()["inFlight"] == 0:
            break
        time.sleep(0.01)
    assert judge.stats()["inFlight"] == 0


def test_a_reset_comes_before_any_header(judge: Judge) -> None:
    with pytest.raises(httpx2.ReadError, match="reset"):
        spoilt(judge, "reset")


def test_a_reset_in_the_body_leaves_half_of_it(judge: Judge) -> None:
    body = {"model": "scripted", "messages": QUESTION}
    headers = {"x-scripted-judge": json.dumps({"faults": {"reset-mid-body": 1}})}
    read = b""
    with (
        pytest.raises(httpx2.ReadError),
        judge.client.stream("POST", judge.url + "/chat/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        for piece in answer.iter_bytes():
            read += piece
    assert 0 < len(read) < int(answer.headers["content-length"])


def test_a_web_page_has_status_200(judge: Judge) -> None:
    answer = spoilt(judge, "web-page")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_a_slow_stream_is_whole_in_the_end(judge: Judge) -> None:
    body = {"model": "scripted", "messages": QUESTION}
    headers = {"x-scripted-judge": json.dumps({"faults": {"slow-stream": 1}, "slow_s": 0.2})}
    with judge.client.stream("POST", judge.url + "/chat/completions", json=body, headers=headers) as answer:
        pieces = list(answer.iter_raw())
    assert len(pieces) > 3
    assert len(json.loads(json.loads(b"".join(pieces))["choices"][0]["message"]["content"])["scores"]) == 3


def test_fenced_prefixed_and_trailing_commas_hide_a_sound_answer(judge: Judge) -> None:
    sound = judge.text(QUESTION)
    assert content(judge, "fenced") == f"```json\n{sound}\n```"
    prefixed = content(judge, "prefixed")
    assert sound in prefixed and not prefixed.startswith("{") and not prefixed.endswith("}")
    comma = content(judge, "trailing-comma")
    with pytest.raises(ValueError):
        json.loads(comma)
    assert comma.replace(",\n ],\n}", "\n ]\n}") == sound


def test_ids_are_missing_doubled_or_nobodys(judge: Judge) -> None:
    assert [entry["id"] for entry in entries(judge, "missing-id")] == ["e0", "e1"]
    assert [entry["id"] for entry in entries(judge, "duplicate-id")] == ["e0", "e1", "e0"]
    assert [entry["id"] for entry in entries(judge, "unknown-id")] == ["e0", "e1", "nobody-e2"]


def test_scores_are_out_of_range_not_a_number_or_a_boolean(judge: Judge) -> None:
    assert [entry["score"] for entry in entries(judge, "out-of-range")] == [5, 0.6, -3]
    assert "NaN" in content(judge, "nan")
    assert entries(judge, "boolean")[2]["score"] is True


def test_an_explanation_is_missing(judge: Judge) -> None:
    assert ["explanation" in entry for entry in entries(judge, "no-explanation")] == [True, True, False]


def test_an_answer_is_empty_truncated_or_refused(judge: Judge) -> None:
    assert content(judge, "empty") == ""
    truncated = spoilt(judge, "truncated").json()["choices"][0]
    assert truncated["finish_reason"] == "length"
    assert judge.text(QUESTION).startswith(truncated["message"]["content"])
    refused = spoilt(judge, "refusal").json()["choices"][0]
    assert (refused["finish_reason"], refused["message"]["content"]) == ("content_filter", None)


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_a_content_fault_can_befall_a_single_episode(judge: Judge, fault: str) -> None:
    answer = judge.post(asked("skill=0.5"), faults={fault: 1})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] != judge.text(asked("skill=0.5"))


def test_asking_again_is_another_draw_and_the_draws_are_the_seeds(judge: Judge) -> None:
    drawn = []
    for _ in range(2):
        judge.reset(seed=4, faults={"rate-limit": 0.5})
        drawn.append([judge.post(QUESTION).status_code for _ in range(12)])
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {200, 429}
    assert judge.stats()["faults"] == {"rate-limit": drawn[0].count(429)}
    assert judge.scores(QUESTION, faults={"rate-limit": 0}) == SOUND


def test_each_fault_is_drawn_with_its_own_probability() -> None:
    share = 2000
    lone = ScriptedJudge(faults={"empty": 0.1})
    assert 0.08 < sum(fault_of(lone, str(number), 0) == "empty" for number in range(share)) / share < 0.12
    every = ScriptedJudge(faults=every_fault(0.05))
    found = [fault_of(every, str(number), 0) for number in range(share)]
    assert set(found) == {None, *FAULTS}
    assert not set(found) & set(REFUSALS)
    assert abs(found.count(None) / share - 0.95 ** len(FAULTS)) < 0.04
