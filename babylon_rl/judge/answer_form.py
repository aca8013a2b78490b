"""Form of a request for an answer: servers differ in the parameters that they accept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Structure = Literal["schema", "json", "free"]
_NEXT: dict[Structure, Structure] = {"schema": "json", "json": "free"}


@dataclass(frozen=True)
class Form:
    """Parameters that shape an answer. ``temperature`` None: not sent."""

    structure: Structure
    temperature: float | None = 0.0

    def parameters(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a chat completion in OpenAI's names; ``schema`` is the answer's JSON schema."""
        parameters: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        if self.structure == "schema":
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "scores", "schema": dict(schema), "strict": True},
            }
        elif self.structure == "json":
            parameters["response_format"] = {"type": "json_object"}
        return parameters

    def plainer(self, refusal: str) -> "Form | None":
        """Next form after a server refused this one with the text ``refusal``.

        None when nothing is left to leave out.
        """
        # some models accept only their default temperature
        if self.temperature is not None and ("temperature" in refusal or self.structure == "free"):
            return replace(self, temperature=None)
        return replace(self, structure=_NEXT[self.structure]) if self.structure in _NEXT else None
