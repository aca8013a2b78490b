"""One attempt at a request: the form in which an answer is asked for, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

Structure = Literal["schema", "json", "free"]
_NEXT: dict[Structure, Structure] = {"schema": "json", "json": "free"}


@dataclass(frozen=True)
class Form:
    """How an answer is asked for: servers differ in what they take. ``temperature`` None: not sent."""

    structure: Structure
    temperature: float | None = 0.0

    def parameters(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a chat completion, in OpenAI's names; ``schema`` is the JSON schema of an answer."""
        found: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        if self.structure == "schema":
            found["response_format"] = {"type": "json_schema", "json_schema": {"name": "scores", "schema": dict(schema), "strict": True}}
        elif self.structure == "json":
            found["response_format"] = {"type": "json_object"}
        return found

    def plainer(self, refusal: str) -> "Form | None":
        """The next form to try after a server refused this one with those words; None when nothing is left to leave out."""
        if self.temperature is not None and ("temperature" in refusal or self.structure == "free"):
            return replace(self, temperature=None)
        return replace(self, structure=_NEXT[self.structure]) if self.structure in _NEXT else None


@dataclass(frozen=True)
class Answered:
    """A chat completion; tokens are None where the server told none or an absurd number."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None


def answered(text: str, finish_reason: object, prompt: object, completion: object, cached: object) -> Answered:
    """An answer with whatever a server said of it; a prompt of no tokens is one that nobody counted."""
    prompt_tokens = plausible(prompt) or None
    completion_tokens = plausible(completion) if prompt_tokens else None
    return Answered(text, finish_reason if isinstance(finish_reason, str) else None, prompt_tokens, completion_tokens, plausible(cached))


class Transport(Protocol):
    """Sends one attempt; raises CallFailed. It bounds no time: the caller cancels what takes too long."""

    async def send(self, messages: Sequence[dict[str, str]], parameters: Mapping[str, Any]) -> Answered: ...

    async def aclose(self) -> None: ...


def plausible(count: object) -> int | None:
    """A token count as a server tells it; None where it cannot be one."""
    if not isinstance(count, int) or isinstance(count, bool):
        return None
    return count if 0 <= count <= 10_000_000 else None
