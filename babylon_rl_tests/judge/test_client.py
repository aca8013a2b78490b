"""Asking a judge over real HTTP, by both wires: what is retried, refused, remembered, bounded and cancelled."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.errors import JudgeRefused, JudgeUnavailable
from babylon_rl.judge.client import JudgeClient, JudgeReply
from babylon_rl.llm.retries import CircuitBreaker, Retries
from babylon_rl.llm.transports import LitellmTransport
from babylon_rl.settings import Settings
from babylon_rl_tests.judge.http_endpoint import Answer, Endpoint, completion, endpoint, refusal
from babylon_rl_tests.scripted_judge.judge import TRANSPORT_FAULTS, ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running

KEY = "sk-test-0123456789"
MESSAGES = [{"role": "system", "content": "Score."}, {"role": "user", "content": "Two episodes."}]
SCHEMA = {"type": "object", "properties": {"scores": {"type": "array"}}, "required": ["scores"], "additionalProperties": False}
WEB_PAGE = Answer(body=b"<html><body>Please sign in</body></html>", headers={"content-type": "text/html"})


class Time:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


Make = Callable[..., JudgeClient]


def settings_at(url: str, model: str = "openai/scripted", **changes: Any) -> Settings:
    settings = Settings(_env_file=None, judge_base_url=url, openai_api_key=SecretStr(KEY))
    return settings.model_copy(update={"judge_model": model} | changes)


def direct(played: Endpoint, time: Time | None = None, model: str = "openai/scripted", **options: Any) -> JudgeClient:
    """A caller that speaks OpenAI's wire to ``played``."""
    changes = {name: options.pop(name) for name in list(options) if name.startswith("judge_")}
    time = time or Time()
    return JudgeClient(settings_at(played.url, model, **changes), clock=time, sleep=time.sleep, jitter=random.Random(1), **options)


def through_litellm(played: Endpoint, time: Time | None = None, model: str = "openai/gpt-4o-mini", **options: Any) -> JudgeClient:
    """A caller that asks litellm for the same."""
    return direct(played, time, model, transport=LitellmTransport(model, played.url, KEY, 60), **options)


both = pytest.mark.parametrize("make", [direct, pytest.param(through_litellm, marks=pytest.mark.slow)])


def run(ask: Callable[[Endpoint], Awaitable[Any]], *script: Answer) -> tuple[Any, Endpoint]:
    """What ``ask`` returns of an endpoint that plays the script, and the endpoint."""

    async def main() -> tuple[Any, Endpoint]:
        async with endpoint(*script) as played:
            return await ask(played), played

    return asyncio.run(main())


def ask_once(make: Make, *script: Answer, **options: Any) -> tuple[JudgeReply, Endpoint]:
    async def ask(played: Endpoint) -> JudgeReply:
        async with make(played, **options) as caller:
            return await caller.ask(MESSAGES, SCHEMA)

    return run(ask, *script)


@both
def test_an_answer_comes_with_its_tokens_and_the_request_was_what_was_meant(make: Make) -> None:
    reply, played = ask_once(make, completion("fine"))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.attempts) == ("fine", 1000, 100, 1)
    seen = played.seen[0]
    assert (seen["path"], seen["messages"], seen["temperature"]) == ("/v1/chat/completions", MESSAGES, 0)
    assert seen["response_format"]["json_schema"]["schema"] == SCHEMA
    assert seen["headers"]["authorization"] == f"Bearer {KEY}"


def test_dollars_are_those_of_the_table_and_none_where_it_knows_nothing() -> None:
    assert ask_once(direct, completion())[0].usd is None
    assert ask_once(direct, completion(), model="openai/gpt-4o-mini")[0].usd == pytest.approx(0.00015 + 0.00006)


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [],
        {"prompt_tokens": -1, "completion_tokens": True},
        {"prompt_tokens": 10**15, "completion_tokens": 1.5},
        {"prompt_tokens": "many", "completion_tokens": None, "prompt_tokens_details": 7},
    ],
)
def test_tokens_that_cannot_be_are_unknown_and_so_is_their_price(usage: Any) -> None:
    reply, _ = ask_once(direct, completion(usage=usage), model="openai/gpt-4o-mini")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.usd, reply.text) == (None, None, None, "fine")


@both
@pytest.mark.parametrize(
    "first",
    [
        *(refusal(status) for status in (408, 429, 500, 502, 503, 504, 529)),
        Answer(hangs_up=True),
        Answer(body=completion().body, cut=True),
        WEB_PAGE,
        Answer(body=b"{}"),
        Answer(body=b'{"choices": []}'),
        Answer(body=b""),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:12]!r}{' cut' * answer.cut}",
)
def test_what_a_retry_can_cure_is_retried(make: Make, first: Answer) -> None:
    reply, played = ask_once(make, first, first, completion("fine"))
    assert (reply.text, reply.attempts, len(played.seen)) == ("fine", 3, 3)


@pytest.mark.slow
@both
def test_no_answer_in_time_is_retried(make: Make) -> None:
    ask_once(make, completion())  # what a first request imports takes longer than such a limit
    reply, played = ask_once(make, Answer(hangs=True), completion("fine"), judge_timeout_seconds=2.0)
    assert (reply.text, reply.attempts, len(played.seen)) == ("fine", 2, 2)


@both
@pytest.mark.parametrize("asked", ["seconds", "date"])
def test_retry_after_is_waited_as_asked(make: Make, asked: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    time = Time()
    ask_once(make, refusal(429, retry_after="40" if asked == "seconds" else later), completion(), time=time)
    assert time.slept == [pytest.approx(40, abs=20)]


@pytest.mark.parametrize("header", ["soon", "", "nan", "-5"])
def test_a_retry_after_that_says_nothing_is_a_short_wait(header: str) -> None:
    time = Time()
    ask_once(direct, refusal(503, retry_after=header), completion(), time=time)
    assert 0 <= time.slept[0] <= 0.5


def test_a_retry_after_beyond_the_time_that_there_is_ends_it_at_once() -> None:
    time = Time()
    with pytest.raises(JudgeUnavailable, match=r"does not answer \(1 tries\): status 429: slow down. It asks to wait 3600 s"):
        ask_once(direct, refusal(429, "slow down", retry_after="3600"), time=time)
    assert time.slept == []


@both
def test_what_one_request_is_asked_to_wait_holds_for_all_and_longer_than_the_time_that_there_is(make: Make) -> None:
    time = Time()

    async def ask(played: Endpoint) -> list[str]:
        said = []
        async with make(played, time) as caller:
            for _ in range(3):
                with pytest.raises(JudgeUnavailable) as failed:
                    await caller.ask(MESSAGES, SCHEMA)
                said.append(str(failed.value))
                time.now += 100
            assert len(played.seen) == 1, "it was asked too early"
            time.now = 3590
            said.append((await caller.ask(MESSAGES, SCHEMA)).text)
        return said

    said, played = run(ask, refusal(429, "slow down", retry_after="3600"), completion("fine"))
    assert "It asks to wait 3600 s" in said[0] and "not asked" in said[1] and "It asks to wait 3500 s" in said[1]
    assert (said[3], time.slept, len(played.seen)) == ("fine", [pytest.approx(10)], 2)


def test_requests_at_once_wait_for_what_one_of_them_was_asked_to_wait() -> None:
    time = Time()

    async def ask(played: Endpoint) -> list[JudgeReply]:
        async with direct(played, time, judge_concurrency=1) as caller:
            return await asyncio.gather(*(caller.ask(MESSAGES, SCHEMA) for _ in range(3)))

    replies, played = run(ask, refusal(429, retry_after="40"), completion("fine"))
    assert ([reply.text for reply in replies], len(played.seen), time.slept) == (["fine"] * 3, 4, [40])


def test_a_retry_after_of_nothing_is_no_leave_to_hammer() -> None:
    time = Time()
    with pytest.raises(JudgeUnavailable, match="10 tries"):
        ask_once(direct, refusal(503, retry_after="0"), time=time)
    assert len(time.slept) == 9 and sum(time.slept) > 20


def test_waits_are_drawn_below_a_bound_that_doubles_up_to_a_limit() -> None:
    time = Time()
    retries = Retries(attempts=7, first_wait_s=1, longest_wait_s=8)
    with pytest.raises(JudgeUnavailable, match="7 tries"):
        ask_once(direct, refusal(500), time=time, retries=retries)
    bounds = [1, 2, 4, 8, 8, 8]
    assert len(time.slept) == 6
    assert all(0 <= wait_s <= bound for wait_s, bound in zip(time.slept, bounds, strict=True))
    assert len(set(time.slept)) == 6


def test_all_tries_and_waits_together_are_bounded() -> None:
    time = Time()
    with pytest.raises(JudgeUnavailable, match="3 tries"):
        ask_once(direct, refusal(503, retry_after="40"), time=time, retries=Retries(total_s=100))
    assert time.slept == [40, 40]


@both
@pytest.mark.parametrize(
    ("answer", "said", "for_all"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}."), "Set OPENAI_API_KEY to a key", True),
        (refusal(403, "not yours"), "Set OPENAI_API_KEY to a key", True),
        (refusal(402, "pay"), "no credit left", True),
        (refusal(429, "You exceeded your current quota", "insufficient_quota"), "no credit left", True),
        (refusal(404, "no such model"), "Set JUDGE_MODEL to a model that is there", True),
        (refusal(400, "This model's maximum context length is 8192 tokens"), "lower JUDGE_REQUEST_TOKENS", False),
        (refusal(413, "too large"), "lower JUDGE_REQUEST_TOKENS", False),
        (refusal(400, f"cannot do that, Authorization: Bearer {KEY}"), "names a chat model", False),
        (refusal(400, "The prompt triggered the content management policy", "content_filter"), "names a chat model", False),
        (refusal(400, "The model `gpt-99` does not exist"), "Set JUDGE_MODEL to a model that is there", True),
        (refusal(400, "Your credit balance is too low to access the API."), "no credit left", True),
        (refusal(400, "Budget has been exceeded! Current cost: 5.1, Max budget: 5.0"), "no credit left", True),
        (refusal(400, "Billing hard limit has been reached", "billing_hard_limit_reached"), "no credit left", True),
        (refusal(400, "API key not valid. Please pass a valid API key."), "Set OPENAI_API_KEY to a key", True),
        (refusal(400, "API key expired. Please renew the API key."), "Set OPENAI_API_KEY to a key", True),
    ],
    ids=lambda value: value.status if isinstance(value, Answer) else None,
)
def test_a_refusal_says_what_to_do_and_shows_no_key(make: Make, answer: Answer, said: str, for_all: bool) -> None:
    time = Time()
    with pytest.raises(JudgeRefused, match=said) as refused:
        ask_once(make, answer, time=time)
    assert refused.value.for_all is for_all
    assert KEY not in str(refused.value)
    assert time.slept == []


def test_an_address_that_is_no_api_says_so() -> None:
    for status in (301, 405, 410):
        with pytest.raises(JudgeRefused, match="JUDGE_BASE_URL to the address that ends before /chat/completions"):
            ask_once(direct, Answer(status, b"moved", {"location": "/elsewhere"}))


def test_nobody_at_the_address_says_so() -> None:
    async def ask() -> None:
        async with direct(Endpoint([], url="http://127.0.0.1:9"), Time()) as caller:
            await caller.ask(MESSAGES, SCHEMA)

    with pytest.raises(JudgeUnavailable, match=r"openai/scripted at http://127.0.0.1:9/v1 does not answer \(10 tries\): ConnectionRefused"):
        asyncio.run(ask())


def test_an_answer_that_breaks_off_in_its_head_is_no_object_of_the_http_client() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n")
        await writer.drain()
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(break_off, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with direct(Endpoint([], url=url), Time()) as caller:
                await caller.ask(MESSAGES, SCHEMA)

    with pytest.raises(JudgeUnavailable, match=r"\(10 tries\): ServerDisconnectedError in the middle of the answer\. "):
        asyncio.run(ask())


@both
def test_a_server_without_structured_output_is_asked_without_from_then_on(make: Make) -> None:
    no_schema = refusal(400, "response_format json_schema is not supported")
    no_json = refusal(400, "response_format is not supported")

    async def ask(played: Endpoint) -> list[str]:
        async with make(played) as caller:
            return [(await caller.ask(MESSAGES, SCHEMA)).text for _ in range(2)]

    texts, played = run(ask, no_schema, no_json, completion("fine"))
    assert texts == ["fine", "fine"]
    assert [seen.get("response_format", {}).get("type") for seen in played.seen] == ["json_schema", "json_object", None, None]


def test_a_model_that_wants_its_own_temperature_keeps_its_structure() -> None:
    _, played = ask_once(direct, refusal(400, "Unsupported value: 'temperature' does not support 0"), completion())
    assert ("temperature" in played.seen[1], played.seen[1]["response_format"]["type"]) == (False, "json_schema")


def test_a_request_that_no_form_of_it_cures_leaves_the_form_for_others() -> None:
    async def ask(played: Endpoint) -> None:
        async with direct(played) as caller:
            with pytest.raises(JudgeRefused):
                await caller.ask(MESSAGES, SCHEMA)
            await caller.ask(MESSAGES, SCHEMA)

    _, played = run(ask, *[refusal(400, "odd")] * 4, completion())
    assert played.seen[4]["response_format"]["type"] == "json_schema"


@both
@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_text_that_is_not_whole_is_given_as_it_is(make: Make, finish: str) -> None:
    assert ask_once(make, completion('{"scores": [', finish))[0].text == '{"scores": ['


def test_a_message_without_text_is_an_empty_one_or_its_refusal() -> None:
    assert ask_once(direct, completion(None, "content_filter"))[0].text == ""
    assert ask_once(direct, completion(None, "stop", refusal="I will not."))[0].text == "I will not."


THOUGHTS = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}
VERDICT = '{"scores": []}'


@pytest.mark.parametrize(
    "content",
    [
        [THOUGHTS, {"type": "text", "text": VERDICT}],
        [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": VERDICT}],
        [{"type": "text", "text": VERDICT[:6]}, {"type": "text", "text": VERDICT[6:]}],
        [7, None, {"type": "image_url"}, {"type": "text", "text": VERDICT}],
        [THOUGHTS, {"type": "refusal", "refusal": VERDICT}],
    ],
)
def test_a_text_in_parts_is_read_at_the_first_try(content: Any) -> None:
    reply, played = ask_once(direct, completion(content))
    assert (reply.text, reply.fault, len(played.seen)) == (VERDICT, "", 1)


@pytest.mark.parametrize("content", [None, "", [], [{"type": "thinking", "thinking": ""}]])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_verdict_in_the_field_of_thinking_is_read_and_prose_there_is_named(content: Any, field: str) -> None:
    assert ask_once(direct, completion(content, **{field: VERDICT}))[0].text == VERDICT
    assert f"{field} alone has a text" in ask_once(direct, completion(content, **{field: "It traded well."}))[0].fault
    cut = ask_once(direct, completion(content, "length", **{field: VERDICT}))[0].fault
    assert field in cut and "finish_reason length" in cut


def test_other_messages_without_a_text_are_empty_answers_at_the_first_try() -> None:
    for message in (
        {"tool_calls": [{}]},
        {"content": {"text": "x"}},
        {"content": 7},
        {"reasoning": {"a": []}},
        {"reasoning": json.loads("[" * 500 + "]" * 500)},
        {"content": [{"type": []}]},
    ):
        reply, played = ask_once(
            direct, completion(None, "stop", **message) if "content" not in message else completion(**{"text": message["content"]})
        )
        assert (reply.text, len(played.seen)) == ("", 1)


def test_an_answer_nested_without_end_is_a_fault_like_any_other() -> None:
    assert ask_once(direct, Answer(body=b"[" * 200_000), completion("fine"))[0].attempts == 2


def test_half_a_surrogate_pair_in_a_text_is_sent_as_a_question_mark() -> None:
    async def ask(played: Endpoint) -> None:
        async with direct(played) as caller:
            await caller.ask([{"role": "user", "content": "a\ud800b"}], SCHEMA)

    _, played = run(ask, completion())
    assert played.seen[0]["messages"][0]["content"] == "a?b"


async def ask_often(caller: JudgeClient, times: int, at_once: int) -> list[Any]:
    """Answers or errors of some requests, a few at a time, as GroupJudge makes them."""
    slots = asyncio.Semaphore(at_once)

    async def ask() -> Any:
        async with slots:
            return await caller.ask(MESSAGES, SCHEMA)

    return await asyncio.gather(*(ask() for _ in range(times)), return_exceptions=True)


def test_a_judge_that_is_down_is_not_asked_by_everybody() -> None:
    time = Time()

    async def ask(played: Endpoint) -> list[str]:
        breaker = CircuitBreaker(time, threshold=3, open_s=1000)
        async with direct(played, time, breaker=breaker, retries=Retries(attempts=4)) as caller:
            failed = await ask_often(caller, 50, 2)
            assert all(isinstance(error, JudgeUnavailable) for error in failed)
            time.now += 1000
            played.script = [completion("back")]
            return [str(failed[-1]), (await caller.ask(MESSAGES, SCHEMA)).text]

    (said, text), played = run(ask, refusal(503, "down for repair"))
    assert text == "back"
    assert re.match(r"Not asked, as [345] requests failed in a row. The last: The judge openai/scripted at http://127.0.0.1:", said)
    assert "status 503: down for repair" in said
    assert len(played.seen) <= 4 * 4 + 1


def test_a_wrong_key_is_not_tried_by_everybody() -> None:
    async def ask(played: Endpoint) -> list[Any]:
        async with direct(played) as caller:
            return await ask_often(caller, 20, 1)

    errors, played = run(ask, refusal(401))
    assert len(played.seen) == 5
    assert all("Set OPENAI_API_KEY" in str(error) for error in errors)


def test_requests_that_are_refused_one_by_one_do_not_stop_the_others() -> None:
    async def ask(played: Endpoint) -> None:
        async with direct(played) as caller:
            for _ in range(10):
                with pytest.raises(JudgeRefused):
                    await caller.ask(MESSAGES, SCHEMA)

    _, played = run(ask, refusal(400, "prompt is too long"))
    assert len(played.seen) == 10


@both
def test_cancelling_hangs_up_and_leaves_the_place_to_another(make: Make) -> None:
    async def ask(played: Endpoint) -> str:
        async with make(played, judge_concurrency=1) as caller:
            task = asyncio.create_task(caller.ask(MESSAGES, SCHEMA))
            await played.asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(played.gone.wait(), 20)
            return (await caller.ask(MESSAGES, SCHEMA)).text

    assert run(ask, Answer(hangs=True), completion("fine"))[0] == "fine"


def test_another_providers_wire_is_litellms() -> None:
    body = b'{"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [{"type": "text", "text": "fine"}],'
    body += b'"stop_reason": "max_tokens", "usage": {"input_tokens": 70, "output_tokens": 7}}'

    async def ask(played: Endpoint) -> JudgeReply:
        model = "anthropic/claude-sonnet-4-5"
        wire = LitellmTransport(model, played.url.removesuffix("/v1"), KEY, 60)
        async with direct(played, model=model, transport=wire) as caller:
            return await caller.ask(MESSAGES, SCHEMA)

    reply, played = run(ask, refusal(529), Answer(body=body, headers={"content-type": "application/json"}))
    assert (reply.text, reply.attempts, reply.prompt_tokens) == ("fine", 2, 70)
    assert reply.usd == pytest.approx(70 * 3e-6 + 7 * 15e-6)
    assert (played.seen[0]["path"], played.seen[0]["headers"]["x-api-key"]) == ("/v1/messages", KEY)


@pytest.mark.slow
def test_litellm_asks_a_server_of_this_machine_without_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "internal.example")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask_once(through_litellm, completion("fine"))[0].text == "fine"


@pytest.mark.slow
def test_every_fault_of_the_line_at_once_loses_no_request() -> None:
    judge = ScriptedJudge(faults=dict.fromkeys(TRANSPORT_FAULTS, 0.05), retry_after_s=0.01, slow_s=0.05)

    async def main(url: str) -> list[JudgeReply]:
        settings = settings_at(url, judge_timeout_seconds=1.0)
        retries = Retries(first_wait_s=0.01, total_s=60)
        async with JudgeClient(settings, retries=retries, jitter=random.Random(2)) as caller:
            asked = [[{"role": "user", "content": f'<episode nonce="n" id="{i}">x</episode nonce="n">'}] for i in range(100)]
            return await asyncio.gather(*(caller.ask(messages, SCHEMA) for messages in asked))

    with running(judge) as url:
        replies = asyncio.run(main(url))
    assert len(replies) == 100
    assert any(reply.attempts > 1 for reply in replies)
    assert all('"scores"' in reply.text for reply in replies)
