"""Endpoint of a judge: model name, address and credential."""

from dataclasses import dataclass, field

from pydantic import SecretStr

from babylon_rl.llm.tokens import table_entry
from babylon_rl.llm.transports import with_version
from babylon_rl.settings import HEURISTIC, Settings, judge_key_variable, provider_key

OPENAI_URL = "https://api.openai.com/v1"
OPENPIPE_URL = "https://api.openpipe.ai/api/v1"


@dataclass(frozen=True)
class Endpoint:
    """Address of a model. ``base_url`` None: litellm's default for the provider.

    ``base_url`` is that of an OpenAI-compatible server, with its version. ``wire_name`` is the model's name there. ``key_variable``
    names the setting that holds the credential, ``address_variable`` the variable of the provider's own client that names the address,
    empty where none does.
    """

    model: str
    wire_name: str
    base_url: str | None
    key: SecretStr | None = field(repr=False)
    key_variable: str
    address_variable: str = ""

    @property
    def where(self) -> str:
        """The address in words; settings reject one that holds a password."""
        where = self.base_url or "its provider"
        return f"{where} ({self.address_variable})" if self.address_variable else where

    @property
    def secret(self) -> str | None:
        """The credential in the clear, None without one."""
        return (None if self.key is None else self.key.get_secret_value().strip()) or None


def endpoint_of(settings: Settings, model: str) -> Endpoint:
    """The endpoint of ``model``.

    At JUDGE_BASE_URL (of the audit's model: at JUDGE_AUDIT_BASE_URL) where set; else at OPENAI_BASE_URL or OPENAI_API_BASE, of a model of
    OpenAI's; else its provider's own.
    """
    provider, name = _parted(model)
    field_name = judge_key_variable(model)
    variable = field_name or f"{(provider or model).upper()}_API_KEY"
    key: SecretStr | None = getattr(settings, field_name.lower()) if field_name else provider_key(variable)
    wire_name = {"openai": name, "openpipe": f"openpipe:{name}"}.get(provider, model)
    given, named_by = _given_address(settings, model)
    if given is not None:
        return Endpoint(model, wire_name, given, key, variable, named_by)
    return Endpoint(model, wire_name, _own_address(provider, model), key, variable)


def server_of(settings: Settings, model: str) -> str:
    """Address of a server that replaces the model's provider; empty if the provider answers.

    Also empty for the heuristic. Answers are stored under it, so that answers of a trial server are never taken for those of the model
    whose name it used.
    """
    given = None if model == HEURISTIC else _given_address(settings, model)[0]
    return "" if given is None or given == _own_address(_parted(model)[0], model) else given


def audit_settings(settings: Settings, model: str) -> Settings:
    """Settings with the second judge ``model`` as the judge, at its own address."""
    return settings.model_copy(update={"judge_model": model, "judge_base_url": settings.judge_audit_base_url or settings.judge_base_url})


def asked_at(settings: Settings, *models: str | None) -> str:
    """Text with the language models among ``models`` and their addresses; empty if there are none."""
    asked = [model for model in dict.fromkeys(models) if model is not None and model != HEURISTIC]
    return " and ".join(f"{model} at {endpoint_of(settings, model).where}" for model in asked)


def _given_address(settings: Settings, model: str) -> tuple[str | None, str]:
    """Address from the settings for ``model``, and the OpenAI variable that named it, else ""."""
    given, named_by = settings.judge_base_url, ""
    # the audit's model has its own address, unless it is the judge
    if settings.judge_audit_base_url is not None and model == settings.judge_audit_model != settings.judge_model:
        given = settings.judge_audit_base_url
    # OpenAI's own variables count for OpenAI's models only
    if given is None and _parted(model)[0] == "openai":
        by_variable = {"OPENAI_BASE_URL": settings.openai_base_url, "OPENAI_API_BASE": settings.openai_api_base}
        named_by = next((name for name, address in by_variable.items() if address), "")
        given = by_variable.get(named_by)
    return (None if given is None else with_version(given)), named_by


def _own_address(provider: str, model: str) -> str | None:
    """Address of the model's provider; None where litellm must choose."""
    if provider == "openpipe":
        return OPENPIPE_URL
    # models of the responses API do not speak chat completions; litellm translates
    speaks_chat = (table_entry(model) or {}).get("mode", "chat") == "chat" and "/responses/" not in model
    return OPENAI_URL if provider == "openai" and speaks_chat else None


def _parted(model: str) -> tuple[str, str]:
    """Split a model name into (provider, name there).

    OpenAI's bare names belong to openai; a name without a provider has an empty one.
    """
    if model.startswith(("openpipe:", "openpipe/")):
        return "openpipe", model[len("openpipe:") :]
    if "/" in model:
        provider, _, name = model.partition("/")
        return provider, name
    return ("openai" if judge_key_variable(model) == "OPENAI_API_KEY" else ""), model
