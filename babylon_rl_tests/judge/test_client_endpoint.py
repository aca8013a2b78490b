"""Where a judge is reached and with which credential, as the settings say; and what they refuse."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from babylon_rl.errors import SettingsError
from babylon_rl.judge.client import endpoint_of, server_of
from babylon_rl.llm.retries import retry_after_s, scrubbed
from babylon_rl.settings import Settings, load_settings

KEYS = {name: SecretStr(f"{name}-secret") for name in ("openai_api_key", "anthropic_api_key", "openpipe_api_key")}


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **{**KEYS, **values})


@pytest.mark.parametrize(
    ("model", "wire_name", "base_url", "key"),
    [
        ("openai/gpt-4o-mini", "gpt-4o-mini", "https://api.openai.com/v1", "openai_api_key"),
        ("gpt-4o-mini", "gpt-4o-mini", "https://api.openai.com/v1", "openai_api_key"),
        ("openai/o1-pro", "o1-pro", None, "openai_api_key"),  # OpenAI has it on another wire only
        ("openpipe:judge-7", "openpipe:judge-7", "https://api.openpipe.ai/api/v1", "openpipe_api_key"),
        ("openpipe/judge-7", "openpipe:judge-7", "https://api.openpipe.ai/api/v1", "openpipe_api_key"),
        ("anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5", None, "anthropic_api_key"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5", None, "anthropic_api_key"),
    ],
)
def test_each_provider_has_its_address_and_its_key(model: str, wire_name: str, base_url: str | None, key: str) -> None:
    found = endpoint_of(settings(), model)
    assert (found.wire_name, found.base_url, found.key) == (wire_name, base_url, KEYS[key])
    assert found.key_variable == key.upper()
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("address", "base_url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://judge.example/api/v2/", "https://judge.example/api/v2"),
    ],
)
def test_a_server_of_ones_own_needs_no_key(address: str, base_url: str) -> None:
    own = settings(judge_base_url=address, openai_api_key=None, judge_model="openai/scripted")
    found = endpoint_of(own, own.judge_model)
    assert (found.base_url, found.wire_name, found.secret) == (base_url, "scripted", None)
    assert endpoint_of(settings(judge_base_url=address), "openai/x").key == KEYS["openai_api_key"]


def test_the_variable_of_openais_client_holds_for_openais_models_where_no_judges_address_is_set() -> None:
    own = settings(openai_base_url="http://a", judge_model="gpt-4o-mini", judge_audit_model="openai/y")
    assert [endpoint_of(own, model).where for model in ("gpt-4o-mini", "openai/y")] == ["http://a/v1 (OPENAI_BASE_URL)"] * 2
    assert endpoint_of(own.model_copy(update={"judge_base_url": "http://c/v1"}), "openai/y").where == "http://c/v1"
    assert [endpoint_of(own, model).base_url for model in ("claude-x", "openpipe:j")] == [None, "https://api.openpipe.ai/api/v1"]
    assert (server_of(own, "openai/y"), server_of(own, "claude-x")) == ("http://a/v1", "")
    assert settings(openai_base_url="http://a", openai_api_key=None, judge_model="gpt-4o-mini").judge_model == "gpt-4o-mini"


def test_both_judges_answer_at_the_server_of_ones_own_without_a_key() -> None:
    own = Settings(_env_file=None, judge_base_url="http://a/v1", judge_model="openai/x", judge_audit_model="openai/y")
    assert [endpoint_of(own, model).base_url for model in ("openai/x", "openai/y")] == ["http://a/v1"] * 2


def test_other_providers_keys_come_from_the_environment_or_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    assert endpoint_of(settings(), "gemini/gemini-2.0-flash").key is None
    Path(".env").write_text("GEMINI_API_KEY=from-the-file\n")
    assert endpoint_of(settings(), "gemini/gemini-2.0-flash").key == SecretStr("from-the-file")
    monkeypatch.setenv("GEMINI_API_KEY", "from-the-environment")
    found = endpoint_of(settings(), "gemini/gemini-2.0-flash")
    assert (found.key, found.key_variable, found.base_url) == (SecretStr("from-the-environment"), "GEMINI_API_KEY", None)


@pytest.mark.parametrize("name", ["judge_base_url", "openai_base_url"])
def test_an_address_with_a_password_is_refused_and_not_repeated(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"{name.upper()} is .a secret.: must hold no user or password") as refused:
        load_settings(**{name: "https://user:hush@judge.example/v1"})
    assert "hush" not in str(refused.value)


def test_an_answer_is_kept_under_a_server_of_ones_own_and_the_providers_own_address_is_none() -> None:
    own = settings(judge_base_url="http://127.0.0.1:8020", judge_audit_model="openai/y")
    assert [server_of(own, model) for model in ("openai/x", "openai/y", "heuristic")] == ["http://127.0.0.1:8020/v1"] * 2 + [""]
    assert server_of(settings(), "openai/x") == server_of(settings(judge_base_url="https://api.openai.com/v1/"), "openai/x") == ""


@pytest.mark.parametrize("name", ["judge_model", "judge_audit_model"])
@pytest.mark.parametrize("model", ["openai/gpt-4o", "gpt-4o", "claude-sonnet-4-5", "openpipe:judge"])
def test_a_judge_without_its_key_is_a_settings_error_unless_it_is_ones_own(name: str, model: str) -> None:
    without = dict.fromkeys(KEYS)
    with pytest.raises(ValidationError, match="needs O|needs A"):
        settings(**without, **{name: model})
    assert getattr(settings(**without, **{name: model}, judge_base_url="http://127.0.0.1:8000"), name) == model


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:port", "http://x:0"])
def test_an_address_that_is_none_is_a_settings_error(address: str) -> None:
    with pytest.raises(ValidationError, match="must be an address such as"):
        settings(judge_base_url=address)


def test_settings_name_the_variable_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="JUDGE_AUDIT_MODEL is 'openai/gpt-4o': needs OPENAI_API_KEY; set it, or unset JUDGE_AUDIT_MODEL"):
        load_settings(judge_audit_model="openai/gpt-4o")


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcdef123456.",
        "header Authorization: Bearer abc.def",
        "bad api_key='abcdefgh'",
        "AIzaSyA1234567890abcdef is not valid",
        "you sent hidden-value",
    ],
)
def test_what_looks_like_a_key_is_not_repeated(text: str) -> None:
    clean = scrubbed(text, ["hidden-value"])
    assert "[key]" in clean
    assert not any(part in clean for part in ("abc", "AIza", "hidden"))


def test_a_long_text_is_shortened_to_one_line() -> None:
    assert scrubbed("a\n b" + "x" * 1000) == "a b" + "x" * 197 + "... (1003 characters)"
    assert scrubbed("risk-adjusted returns") == "risk-adjusted returns"


def test_a_date_in_the_past_is_no_wait() -> None:
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", datetime.now(UTC)) == 0
    assert retry_after_s(None, datetime.now(UTC)) is None
    assert retry_after_s("inf", datetime.now(UTC)) is None
    assert retry_after_s(f"Wed, {10**20} Oct 2015 07:28:00 GMT", datetime.now(UTC)) is None
