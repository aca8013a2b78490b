"""The form in which a judge is asked for an answer: servers differ in what they take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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
