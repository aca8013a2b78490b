"""Every environment variable of the pipeline, typed, described and validated in one place.

Nothing else in the package reads the environment. ``load_settings`` raises one error that names every variable that is
not allowed, its value and what is; ``.env`` in the working directory is read below the real environment.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from babylon_rl.errors import SettingsError
from babylon_rl.windows import is_window_id

HEURISTIC = "heuristic"
ENV_FILE = ".env"
_JUDGE_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "openpipe": "OPENPIPE_API_KEY"}


class Settings(BaseSettings):
    """One field per environment variable; the variable is the field's name in upper case."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True, validate_default=True)

    # Where things are
    database_url: SecretStr | None = Field(
        None, description="The Babylon database (postgresql://...). Unset: an embedded Postgres under BABYLON_RL_HOME."
    )
    direct_database_url: SecretStr | None = Field(
        None, description="The same database past a connection pooler, for migrations and Dagster's storage. Unset: DATABASE_URL."
    )
    babylon_rl_home: Path = Field(
        Path(".babylon"), description="The state directory: embedded database, model weights, checkpoints, Dagster's logs."
    )
    first_window: str = Field("2025-01-01T00:00", description="The first hourly partition.")

    # Services
    wandb_api_key: SecretStr | None = Field(None, description="Weights & Biases: metrics, serverless training, hosted inference.")
    wandb_entity: str | None = Field(None, description="The Weights & Biases entity. Unset: the key's own.")
    wandb_project: str = Field("babylon-rl-training", description="The Weights & Biases project.")
    wandb_model: str | None = Field(None, description="An inference model to use instead of the registry's.")
    openpipe_api_key: SecretStr | None = Field(None, description="Credentials of a judge named openpipe:...")
    openai_api_key: SecretStr | None = Field(None, description="Credentials of a judge named openai/...")
    anthropic_api_key: SecretStr | None = Field(None, description="Credentials of a judge named anthropic/...")
    serverless_base_url: str | None = Field(None, description="The serverless training service's address. Unset: Weights & Biases'.")
    model_storage_url: str | None = Field(None, description="Where checkpoints are uploaded (any fsspec URL). Unset: they stay here.")
    cron_secret: SecretStr | None = Field(None, description="Bearer token of the trigger endpoints. Unset: they answer on loopback only.")
    discord_webhook_url: SecretStr | None = Field(None, description="Where alerts are posted.")

    # The judge
    judge_model: str = Field(HEURISTIC, description="Any litellm model name, or heuristic. Nothing leaves the machine until it is set.")
    judge_audit_model: str | None = Field(None, description="A second judge, asked on a sample.")
    judge_budget_usd: float | None = Field(None, ge=0, description="The most a run, and a day, may spend on the judge.")
    judge_concurrency: int = Field(16, ge=1, description="Judge requests in flight at once.")
    judge_orders: int = Field(2, ge=1, description="Orders in which each group is shown to the judge.")
    judge_settle_hours: float = Field(6, ge=0, description="Hours to wait for late rows before an LLM judges an hour by automation.")
    show_hidden_answers_to_judge: bool = Field(
        True, description="Show the judge (never the policy) the engine's hidden answers, marked as hidden."
    )

    # What counts
    min_agents_per_window: int = Field(5, ge=1, description="Usable episodes that make an hour ready.")
    min_actions_per_trajectory: int = Field(5, ge=1, description="Steps that make an episode usable.")
    outcome_delay_minutes: float = Field(5, ge=0, description="Minutes after an hour's end before automation reads it.")
    sentiment_band_percent: float = Field(1.0, ge=0, description="Price changes within +- this percentage are NEUTRAL.")
    training_min_trajectories: int = Field(1000, gt=0, description="Freezable trajectories before the sensor starts a training.")
    training_min_group_size: int = Field(10, gt=0, description="Readiness: freezable trajectories in a group.")
    training_min_groups: int = Field(10, gt=0, description="Readiness: groups of that size.")
    data_quality_threshold: float = Field(0.95, ge=0, le=1, description="Readiness: mean quality of the newest rows.")
    training_interval_hours: float = Field(24, gt=0, description="A training starts at least this often when ready.")
    backfill_hours: int = Field(24, gt=0, le=1_000_000, description="Hours that MODE=backfill reaches back.")
    lookback_hours: int = Field(
        168,
        gt=0,
        le=1_000_000,
        description="How far back a batch looks for freezable episodes, from the newest complete hour that holds rows.",
    )

    # Training
    mode: Literal["single", "list", "continuous", "backfill"] = Field("single", description="What a bare `babylon-rl train` does.")
    window_id: str | None = Field(None, description="Pin one run to one hour.")
    batch_id: str | None = Field(None, description="Pin one run to an existing batch.")
    model_version: str | None = Field(None, description="Pin the version that a run registers.")
    base_model: str = Field(
        "OpenPipe/Qwen3-14B-Instruct", description="Base of the serverless and GPU line, and the fallback at inference."
    )
    local_base_model: str | None = Field(
        None,
        description="Base of the CPU line: a directory or hub id; dry: a trainer that trains nothing. "
        "Unset: the packaged SmolLM2-135M-Instruct.",
    )
    train_rl_local: bool = Field(False, description="Train on this machine when there is no WANDB_API_KEY.")
    learning_rate: float | None = Field(None, gt=0, description="Unset: per backend (serverless and GPU 5e-6, CPU as measured best).")
    batch_size: int = Field(4, gt=0, description="Sequences a device step (GPU; the CPU trainer packs them by their prompts).")
    gradient_accumulation_steps: int = Field(
        2, gt=0, description="Device steps an optimizer step (GPU; the CPU trainer takes 24 sequences or more)."
    )
    epochs: int = Field(1, gt=0, description="Passes over a batch.")
    iterations: int = Field(10, gt=0, description="Resumable steps of one training.")
    windows_per_iteration: int = Field(20, gt=0, description="Most windows an iteration trains on.")
    kl_penalty: float = Field(0.05, ge=0, description="Weight of the KL to the reference policy.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    warmup_steps: int = Field(3, ge=0, description="Optimizer steps of linear warm-up.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount; 1, as a score belongs to a whole episode.")
    max_staleness_versions: int | None = Field(None, ge=0, description="Oldest policy version, behind the newest, whose sequences train.")
    train_purposes: str = Field("action", description="Purposes of LLM calls that train, separated by commas.")
    train_synthetic: bool = Field(False, description="Train on texts synthesized from state and action.")
    training_budget_usd: float | None = Field(None, ge=0, description="The most a paid training may cost.")
    min_improvement: float = Field(0.0, description="What the lower bound of the paired improvement must exceed, in dollars an hour.")
    benchmark_markets: int = Field(
        24, ge=2, description="Unseen market hours in which a version is compared; up to 4 times as many where these decide nothing."
    )

    # Recording and inference
    trajectory_sampling_rate: float = Field(1.0, ge=0, le=1, description="Share of trajectories that the recorder keeps.")
    record_agent_trajectories: bool = Field(True, description="False makes the recorder a null object.")
    node_env: str | None = Field(None, description="The game's environment name; production turns USE_RL_MODEL's default off.")
    environment: str | None = Field(None, description="As NODE_ENV.")
    use_rl_model: bool | None = Field(None, description="Master switch at inference. Unset: on, but off in production.")
    rl_model_version: str | None = Field(None, description="Pin the version at inference. Unset: the newest deployed.")
    rl_fallback_to_base: bool = Field(True, description="Fall back to the base model on an error.")
    rl_rollout_percentage: float = Field(100, ge=0, le=100, description="Upper bound on the share of agents that get the RL model.")
    local_endpoint: str = Field("http://localhost:8000", description="A self-hosted OpenAI-compatible server.")

    @field_validator("first_window", "window_id")
    @classmethod
    def _is_window(cls, value: str | None) -> str | None:
        if value is not None and not is_window_id(value):
            raise ValueError("must be an hour in UTC, YYYY-MM-DDTHH:00")
        return value

    @field_validator("babylon_rl_home")
    @classmethod
    def _is_somewhere(cls, value: Path) -> Path:
        try:
            value.expanduser()
        except RuntimeError:
            raise ValueError("begins with the home of a user who does not exist here") from None
        return value

    @field_validator("database_url", "direct_database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("judge_model")
    @classmethod
    def _judge_has_credentials(cls, value: str, others: ValidationInfo) -> str:
        variable = _JUDGE_KEYS.get(value.replace(":", "/").split("/")[0])
        if variable is not None and others.data.get(variable.lower()) is None:  # the keys stand above, and so are known
            raise ValueError(f"needs {variable}; set it, or set JUDGE_MODEL={HEURISTIC}")
        return value

    @property
    def home(self) -> Path:
        """The state directory as an absolute path."""
        return self.babylon_rl_home.expanduser().absolute()

    @property
    def uses_embedded_database(self) -> bool:
        """True when no DATABASE_URL is set."""
        return self.database_url is None

    @property
    def purposes_g(self) -> frozenset[str]:
        """Purposes of LLM calls that train."""
        return frozenset(part.strip() for part in self.train_purposes.split(",") if part.strip())

    def warnings(self) -> list[str]:
        """Values that are allowed and probably not meant, one sentence each."""
        found = []
        if self.batch_size > 64:
            found.append(f"BATCH_SIZE is {self.batch_size}: above 64 a device step rarely fits in memory.")
        if self.learning_rate is not None and not 1e-8 <= self.learning_rate <= 1e-3:
            found.append(f"LEARNING_RATE is {self.learning_rate:g}: outside 1e-8 to 1e-3 training usually collapses or stands still.")
        if self.kl_penalty > 1:
            found.append(f"KL_PENALTY is {self.kl_penalty:g}: above 1 the policy hardly moves.")
        return found


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and ``.env``; ``overrides`` (field names) win over both.

    Raises:
        SettingsError: one or more values are not allowed; the message has a line for each.
    """
    lines = _unreadable_lines(Path(ENV_FILE))
    try:
        settings = Settings(**overrides)
    except ValidationError as invalid:
        lines += [_explain(error) for error in invalid.errors(include_url=False)]
    if lines:
        noun = "setting is" if len(lines) == 1 else "settings are"
        raise SettingsError(f"{len(lines)} {noun} not allowed:\n" + "\n".join(f"  {line}" for line in lines))
    return settings


def setting_sources() -> dict[str, str]:
    """Where each field's value comes from: ``environment``, ``.env`` or ``default``; the same precedence as ``load_settings``."""
    found = dict.fromkeys(Settings.model_fields, "default")
    for source, name in ((DotEnvSettingsSource(Settings), ".env"), (EnvSettingsSource(Settings), "environment")):
        found |= {field: name for field in source() if field in found}
    return found


def _unreadable_lines(env_file: Path) -> list[str]:
    """A sentence for each line of ``.env`` that its parser would leave out with a mere warning. Raises SettingsError: it is no text."""
    if not env_file.is_file():
        return []
    try:
        text = env_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failed:
        reason = failed.strerror if isinstance(failed, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{env_file.absolute()} cannot be read: {reason}. Mend it, or move it away.") from None
    from dotenv.parser import parse_stream

    found = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
    if found:
        logging.getLogger("dotenv.main").setLevel(logging.ERROR)  # it would warn of the same lines
    return [f"{env_file}, line {line}: write NAME=value, with both quotes or none." for line in found]


def _explain(error: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in error["loc"]).upper()
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if name else message
    if not name:
        return message
    field = Settings.model_fields.get(name.lower())
    secret = field is not None and "SecretStr" in str(field.annotation)
    value = "(a secret)" if secret else repr(error["input"])
    return f"{name} is {value}: {message.replace('input should', 'it should')}."
