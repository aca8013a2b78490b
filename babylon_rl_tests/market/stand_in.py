"""A chat-completions endpoint whose answers are a function of the request: a model without the model. No answer is a 500."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.models.grammar import language
from babylon_rl_tests.http_stand_in import Handler, served

Answer = Callable[[dict[str, Any]], str | None]


@dataclass
class StandIn:
    """``url`` of the endpoint and the requests that it has seen."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)


def by_seed(request: dict[str, Any]) -> str:
    """One of the schema's answers, chosen by the request's seed."""
    texts = language(request["response_format"]["json_schema"]["schema"])
    return texts[request["seed"] % len(texts)]


@contextmanager
def stand_in(answer: Answer = by_seed) -> Iterator[StandIn]:
    chats = StandIn()

    class Answers(Handler):
        def do_POST(self) -> None:
            request = json.loads(self.body())
            chats.seen.append(request)
            text = answer(request)
            if text is None:
                self.send_error(500)
                return
            entries = [{"token": character, "logprob": -0.25, "token_id": ord(character)} for character in text]
            reason = "length" if len(text) > request["max_tokens"] else "stop"
            choice = {"message": {"content": text}, "finish_reason": reason, "logprobs": {"content": entries}}
            body = json.dumps({
                "model": request["model"], "choices": [choice],
                "usage": {"prompt_tokens": 99, "completion_tokens": len(text)},
            }).encode()  # fmt: skip
            self.answer(body)

    with served(Answers) as chats.url:
        yield chats
