"""Chats by a chat template: no message writes a control token."""

import json

from hypothesis import given

from babylon_rl.errors import RequestRefused
from babylon_rl.models.encoding import control_ids, encode_prompt
from babylon_rl.tolerant_json import NotJson, read_json
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.tiny_tokenizer import make_tokenizer

TOKENIZER = make_tokenizer()
CONTROL = control_ids(TOKENIZER)


def check(raw: bytes) -> None:
    """JSON messages are refused, or the tokens of their text with as many control tokens as the template writes."""
    try:
        messages = read_json(raw)
        messages = messages if isinstance(messages, list) else [messages]
        ids = encode_prompt(TOKENIZER, messages)
    except (NotJson, RequestRefused):
        return
    harmless = encode_prompt(TOKENIZER, [{"role": "user", "content": "x"}] * len(messages))
    assert [one for one in ids if one in CONTROL] == [one for one in harmless if one in CONTROL]


def test_no_kept_chat_writes_a_control_token() -> None:
    for raw in corpus("templates"):
        check(raw)


@repeatable(200)
@given(odd_bytes("templates"))
def test_no_chat_writes_a_control_token(raw: bytes) -> None:
    check(raw)
    check(json.dumps({"role": "user", "content": raw.decode("latin-1")}).encode())
