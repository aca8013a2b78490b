"""Token counts: of a text for a judge, and the limit of a request.

OpenAI's models are counted with their own encodings, which are installed with litellm, so that nothing is fetched. Any other model is
estimated with a margin, and the counter says so.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from babylon_rl.llm.pricing import table_entry
from babylon_rl.settings import Settings

REQUEST_TOKENS = 32_000  # of a request to a model whose context is not known
CONTEXT_SHARE = 0.75  # of a model's context; the rest is for its reasoning, its answer, and a request after an unusable answer
LEAST_REQUEST_TOKENS = 2_000
MARGIN = 1.2  # allowance for other tokenizers; not measured
CHARACTERS_PER_TOKEN = 3
_NEWER = "o200k_base"
_OLDER = "cl100k_base"
_OLDER_MODELS = ("gpt-4-", "gpt-3.5", "text-embedding")
_OWN = ("gpt-", "o1", "o3", "o4", "chatgpt-")


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of a text; ``exact`` is False where ``name`` is an estimate.

    An estimate is used where the model's own tokenizer is not known.
    """

    name: str
    exact: bool
    count: Callable[[str], int]


def request_tokens(settings: Settings) -> int:
    """Token limit of a request to JUDGE_MODEL.

    Three quarters of its context where litellm knows it, JUDGE_REQUEST_TOKENS at most.
    """
    context = (table_entry(settings.judge_model) or {}).get("max_input_tokens")
    known = [int(context * CONTEXT_SHARE)] if isinstance(context, int) else []
    asked = [settings.judge_request_tokens] if settings.judge_request_tokens is not None else []
    return max(LEAST_REQUEST_TOKENS, min([*known, *asked], default=REQUEST_TOKENS))


@functools.lru_cache(maxsize=16)
def token_counter(model: str) -> TokenCounter:
    """Counter for a litellm model name."""
    provider, _, name = model.rpartition("/")
    own = name.startswith(_OWN) and provider in ("", "openai", "azure")
    encoding = _OLDER if own and (name == "gpt-4" or name.startswith(_OLDER_MODELS)) else _NEWER
    encode = _encoder(encoding)
    if encode is None:
        return TokenCounter(f"estimate: {CHARACTERS_PER_TOKEN} bytes a token", False, _by_length)
    if own:
        return TokenCounter(encoding, True, encode)
    return TokenCounter(f"estimate: {MARGIN} x {encoding}", False, lambda text: math.ceil(encode(text) * MARGIN))


def _by_length(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // CHARACTERS_PER_TOKEN)


@functools.lru_cache(maxsize=4)
def _encoder(encoding: str) -> Callable[[str], int] | None:
    """Token count in a tiktoken encoding that litellm ships; None if it is missing."""
    package = importlib.util.find_spec("litellm")
    if package is None or package.origin is None or importlib.util.find_spec("tiktoken") is None:
        return None
    folder = Path(package.origin).parent / "litellm_core_utils" / "tokenizers"
    if not folder.is_dir():
        return None
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))  # as litellm does when it is imported
    import tiktoken

    try:
        ordinary = tiktoken.get_encoding(encoding).encode_ordinary
    except (OSError, ValueError):
        return None
    return lambda text: len(ordinary(text.encode("utf-8", "replace").decode()))
