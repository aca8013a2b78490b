"""Chat completions as the service gives them: an answer that the schema allows, with ``token_id:<id>`` log-probabilities."""

import random
from dataclasses import dataclass
from typing import Any

from babylon_rl.models.grammar import language


@dataclass(frozen=True)
class Chat:
    """What answers: the base's tokenizer (any with ``encode`` and ``eos_token_id``)."""

    tokenizer: Any


def answer_chat(chat: Chat, request: dict[str, Any]) -> dict[str, Any]:
    """One of the schema's answers, drawn by the request's seed (``hi`` without a schema)."""
    schema = (request.get("response_format") or {}).get("json_schema")
    texts = language(schema["schema"]) if schema is not None else ["hi"]
    drawn = random.Random(request.get("seed", 0))
    text = drawn.choice(texts)
    ids = [*chat.tokenizer.encode(text, add_special_tokens=False), chat.tokenizer.eos_token_id]
    tokens = [{"token": f"token_id:{one}", "logprob": -drawn.random(), "bytes": None, "top_logprobs": []} for one in ids]
    return {
        "id": "chat-1", "object": "chat.completion", "created": 1, "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text},
                     "logprobs": {"content": tokens, "refusal": None}}],
        "usage": {"prompt_tokens": 99, "completion_tokens": len(ids), "total_tokens": 99 + len(ids)},
    }  # fmt: skip
