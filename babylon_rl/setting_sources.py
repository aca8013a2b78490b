"""Sources of settings: the environment, ``.env`` in the working directory, the stored choices of a demo.

The strongest comes first. Error sentences about values are made here too.
Functions take the class of all settings, which stands above in ``babylon_rl.settings``.
"""

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from babylon_rl.errors import SettingsError

ENV_FILE = ".env"
DEMO_FILE = "demo.env"  # in the state directory
_JUDGE_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "openpipe": "OPENPIPE_API_KEY"}
# Providers of models that are named without one, by how such names begin.
_BARE_NAMES = {"gpt-": "openai", "chatgpt-": "openai", "o1": "openai", "o3": "openai", "o4": "openai", "claude-": "anthropic"}
# Variables without effect, of earlier versions or of the game, with what to do instead: each command names those that are set.
_FIXED = "it is {} for everybody now: unset it"
GONE = {
    "READ_DATABASE_URL": "all commands read DATABASE_URL; for heavy reads run the command with the replica's address as DATABASE_URL",
    "READ_WAIT_SECONDS": "it was removed with READ_DATABASE_URL; unset it",
    "WINDOW_DURATION_HOURS": "a window is one hour; train on more hours with LOOKBACK_HOURS and WINDOWS_PER_ITERATION "
    "(docs/explanation/differences.md)",
    "GAMMA": "a score belongs to a whole episode, so that nothing is discounted; unset it",
    "TRAIN_CUT_ANSWERS": "an answer that was cut off never trains: raise the agents' token limit",
    "OPENAI_API_BASE": "unset it, and set OPENAI_BASE_URL or JUDGE_BASE_URL",
    "OUTCOME_DELAY_MINUTES": _FIXED.format("5"),
    "SENTIMENT_BAND_PERCENT": _FIXED.format("1"),
    "JUDGE_TIMEOUT_SECONDS": "it is 120 for everybody now: lower JUDGE_CONCURRENCY or JUDGE_REQUEST_TOKENS where a judge is slow",
    "JUDGE_AUDIT_BASE_URL": "JUDGE_BASE_URL holds for both judges: let that server answer for JUDGE_AUDIT_MODEL too",
    "SHOW_HIDDEN_ANSWERS_TO_JUDGE": "set JUDGE_PRIVATE_FIELDS=hidden_answers,game_knowledge to keep them back",
    "JUDGE_MAX_ORDERS": "it is 4, or JUDGE_ORDERS if that is more, for everybody now: set JUDGE_ORDERS",
    "JUDGE_DISAGREEMENT": _FIXED.format("0.15"),
    "JUDGE_TRIES": _FIXED.format("12"),
    "JUDGE_GROUP_SIZE": "it is 16 for everybody now; JUDGE_REQUEST_TOKENS bounds a request",
    "SERVERLESS_LONGEST_JOB_MINUTES": "it is 180 for everybody now; `babylon-rl batches give-up-job` gives up a job earlier",
    "CONFIRMATION_MARKETS": _FIXED.format("96"),
    "TRAINING_DAILY_MIN_TRAJECTORIES": "it is 100, or TRAINING_MIN_TRAJECTORIES if that is less, for everybody now: unset it",
    "CHECKPOINTS_KEPT": "it is 10 for everybody now: set MODEL_STORAGE_URL to keep all of them elsewhere",
    "UPLOAD_LIMIT_MB": _FIXED.format("1,024"),
    "ALERT_COMMAND": "set ALERT_WEBHOOK_URL; a small receiver of its POST can run a command",
    "GATEWAY_TIMEOUT_SECONDS": _FIXED.format("60"),
    "GATEWAY_BODY_LIMIT_MB": _FIXED.format("4"),
    "GATEWAY_SPOOL_MB": "it is 1,024 for everybody now: give BABYLON_RL_HOME room",
    "GATEWAY_LOGPROBS": "log-probabilities are asked for where a request leaves it open; a request with logprobs false is left alone",
    "ROLLOUT_STEPS": "they are 1, 10, 25, 50, 100 % for everybody now; `babylon-rl models deploy VERSION --percentage` sets another share",
    "ROLLOUT_STEP_HOURS": "it is 24 for everybody now; `babylon-rl models deploy VERSION --percentage` advances a rollout earlier",
    "ROLLOUT_SHARE_LIMIT": _FIXED.format("0.02"),
    "ROLLOUT_SLOW_SECONDS": _FIXED.format("10"),
    "ROLLOUT_LOSS_USD": _FIXED.format("25"),
    "ROLLOUT_EXPECTED_USD": "it is 50 for everybody now: give `babylon-rl ab start --expected`",
}


def judge_key_variable(model: str) -> str | None:
    """The variable that holds a judge's credentials, by litellm model name; None if unknown."""
    provider = model.replace(":", "/").split("/")[0]
    if "/" not in model:
        provider = next((owner for start, owner in _BARE_NAMES.items() if model.startswith(start)), provider)
    return _JUDGE_KEYS.get(provider)


def provider_key(settings_class: type[BaseSettings], variable: str) -> SecretStr | None:
    """A judge's credential that is no setting (GEMINI_API_KEY, ...), from environment or ``.env``."""
    value = os.environ.get(variable) or DotEnvSettingsSource(settings_class).env_vars.get(variable.lower())
    return SecretStr(value) if value else None


def gone_settings(settings_class: type[BaseSettings]) -> list[str]:
    """A sentence for each variable of GONE that is set in the environment or ``.env``. Raises SettingsError: ``.env`` is not text."""
    unreadable_lines(Path(ENV_FILE))
    given = {**DotEnvSettingsSource(settings_class).env_vars, **EnvSettingsSource(settings_class).env_vars}
    return [f"{name} is set but has no effect: {advice}." for name, advice in GONE.items() if given.get(name.lower())]


def setting_sources(settings_class: type[BaseSettings]) -> dict[str, str]:
    """The source of each value: ``environment``, ``.env``, ``demo`` or ``default``."""
    dotenv, environment = DotEnvSettingsSource(settings_class)(), EnvSettingsSource(settings_class)()
    demo = demo_choices(settings_class, dotenv | environment)
    sources = dict.fromkeys(settings_class.model_fields, "default")
    # The strongest last.
    for given, name in ((demo, "demo"), (dotenv, ".env"), (environment, "environment")):
        sources |= {field: name for field in given if field in sources}
    return sources


def kept_demo_choices(settings_class: type[BaseSettings]) -> dict[str, str]:
    """Stored choices in effect, as variables for children, which are given DATABASE_URL."""
    given = DotEnvSettingsSource(settings_class)() | EnvSettingsSource(settings_class)()
    stored = demo_choices(settings_class, given)
    return {field.upper(): str(value) for field, value in stored.items() if field in settings_class.model_fields.keys() - given.keys()}


def demo_choices(settings_class: type[BaseSettings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Stored choices that hold beside the ``given`` values; none with a database of the user's own."""
    # It is not the demo's, whatever its state directory holds.
    if given.get("database_url"):
        return {}
    home = Path(given.get("babylon_rl_home") or settings_class.model_fields["babylon_rl_home"].default)
    # A home that does not exist is refused by its validator, with the other values.
    directory = Path(os.path.expanduser(home)).absolute()
    return DotEnvSettingsSource(settings_class, env_file=directory / DEMO_FILE)()


def unreadable_lines(env_file: Path) -> list[str]:
    """One sentence per line of ``.env`` that its parser would skip with a warning. Raises SettingsError: the file is not text."""
    if not env_file.is_file():
        return []
    try:
        text = env_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failed:
        reason = failed.strerror if isinstance(failed, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{env_file.absolute()} cannot be read: {reason}. Mend it, or move it away.") from None
    from dotenv.parser import parse_stream

    lines = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
    if lines:
        logging.getLogger("dotenv.main").setLevel(logging.ERROR)  # it would warn of the same lines
    return [f"{env_file}, line {line}: write NAME=value, with both quotes or none." for line in lines]


def secret_settings(settings_class: type[BaseSettings]) -> set[str]:
    """Names of the settings that are secrets."""
    return {name for name, field in settings_class.model_fields.items() if "SecretStr" in str(field.annotation)}


def explained(settings_class: type[BaseSettings], error: Mapping[str, Any]) -> str:
    """One sentence on an error of pydantic's: variable, value and what is allowed."""
    name = ".".join(str(part) for part in error["loc"]).upper()
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if name else message
    if not name:
        return message
    # An address with @ may hold a password.
    secret = name.lower() in secret_settings(settings_class) or "@" in str(error["input"])
    value = "(a secret)" if secret else repr(error["input"])
    return f"{name} is {value}: {message.replace('input should', 'it should')}."


def is_http(address: str) -> bool:
    """True for an address of HTTP with a host and, if it names one, a port."""
    try:
        parts = urlsplit(address)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no number
        return False
