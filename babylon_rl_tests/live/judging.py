"""One request to a judge through litellm, as the package pins it; ``address`` points it at a stand-in."""

import json
from collections.abc import Mapping

import pytest

from babylon_rl.settings import Settings

SCHEMA = {
    "type": "object",
    "properties": {
        "scores": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "score": {"type": "number"}},
                "required": ["id", "score"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["scores"],
    "additionalProperties": False,
}
ASKED = "Two trading episodes of the same hour follow as JSON, by id. Score each from 0 (worst) to 1 (best)."


def credentials(settings: Settings) -> str | None:
    """The key of the judge's provider, where the settings have one; litellm finds others in the environment."""
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key, "openpipe": settings.openpipe_api_key}
    key = keys.get(settings.judge_model.replace(":", "/").split("/")[0])
    return None if key is None else key.get_secret_value()


def ask_judge(model: str, key: str | None, episodes: Mapping[str, str], address: str | None = None) -> str:
    """The text of the judge's answer to ``episodes`` (id: text), constrained to SCHEMA."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read at import: without it the map comes from the net
        import litellm
    litellm.disable_aiohttp_transport = True  # that transport takes a body cut off by a reset for whole
    answer = litellm.completion(
        model=model,
        api_key=key,
        api_base=address,
        messages=[{"role": "system", "content": ASKED}, {"role": "user", "content": json.dumps(episodes)}],
        response_format={"type": "json_schema", "json_schema": {"name": "scores", "schema": SCHEMA, "strict": True}},
        timeout=120,
        num_retries=0,
    )
    return str(answer.choices[0].message.content)
