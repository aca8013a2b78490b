"""Every environment variable of the pipeline, typed, described and validated in one place.

Nothing but this and setting_sources.py reads the environment. ``load_settings`` raises one error that names each variable with a
refused value, the value and the allowed ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from babylon_rl.errors import SettingsError
from babylon_rl.setting_sources import ENV_FILE, demo_choices, explained, is_http, judge_key_variable, unreadable_lines
from babylon_rl.windows import is_window_id

HEURISTIC = "heuristic"
_BROKERS = ("redis://", "rediss://", "amqp://", "amqps://", "pyamqp://")
T = TypeVar("T", str, SecretStr)


def _must(hold: Callable[[str], bool], otherwise: str) -> AfterValidator:
    """Validator of a text or a secret; ``otherwise`` says what is allowed."""

    def validated(value: T) -> T:
        if not hold(value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise ValueError(otherwise)
        return value

    return AfterValidator(validated)


PostgresUrl = Annotated[SecretStr, _must(lambda url: url.startswith(("postgresql://", "postgres://")), "must start with postgresql://")]
BrokerUrl = Annotated[SecretStr, _must(lambda url: url.startswith(_BROKERS), f"must start with one of {', '.join(_BROKERS)}")]
LogsUrl = Annotated[
    str,
    _must(
        lambda url: url.startswith(("s3://", "gs://", "az://")),
        "must start with s3://, gs:// or az://: Dagster has managers of output for these. Unset it for other places",
    ),
]
WebHook = Annotated[SecretStr, _must(is_http, "must be an address such as https://hooks.example.com/services/...")]
WebAddress = Annotated[str, _must(is_http, "must be an address such as http://127.0.0.1:8000/v1")]
ShownAddress = Annotated[
    WebAddress,
    _must(
        lambda url: "@" not in urlsplit(url).netloc,
        "must hold no user or password, as addresses are shown and stored; the API key says who asks",
    ),
]
Window = Annotated[str, _must(is_window_id, "must be an hour in UTC, YYYY-MM-DDTHH:00")]


class SettingsGroup(BaseModel, defer_build=True):
    """Base of the groups, which are validated as parts of Settings only."""


class DatabaseSettings(SettingsGroup):
    """Places of data, and the range of hours."""

    database_url: PostgresUrl | None = Field(
        None, description="The Babylon database (postgresql://...). Unset: an embedded Postgres under BABYLON_RL_HOME."
    )
    direct_database_url: PostgresUrl | None = Field(
        None, description="The same database past a connection pooler, for migrations and Dagster's storage. Unset: DATABASE_URL."
    )
    babylon_rl_home: Path = Field(
        Path(".babylon"), description="The state directory: embedded database, model weights, checkpoints, Dagster's logs."
    )
    first_window: Window = Field("2025-01-01T00:00", description="The first hourly partition.")
    last_window: Window | None = Field(
        None,
        description="The last hourly partition, until rows of a later hour come. Unset: the newest hour that has ended; `babylon-rl dev` "
        "sets it where the newest rows are older than a week.",
    )

    @field_validator("babylon_rl_home")
    @classmethod
    def _is_somewhere(cls, value: Path) -> Path:
        try:
            value.expanduser()
        except RuntimeError:
            raise ValueError("begins with the home of a user who does not exist here") from None
        return value

    @property
    def home(self) -> Path:
        return self.babylon_rl_home.expanduser().absolute()

    @property
    def uses_embedded_database(self) -> bool:
        return self.database_url is None


class HourSettings(SettingsGroup):
    """Limits for rows and hours, and the description of an hour."""

    sentiment_band_percent: ClassVar[float] = 1.0  # price changes within +- this percentage are NEUTRAL

    min_agents_per_window: int = Field(5, ge=1, description="Usable episodes that make an hour ready.")
    min_actions_per_trajectory: int = Field(5, ge=1, description="Steps that make an episode usable.")


class JudgeSettings(SettingsGroup):
    """The judge: model, addresses, keys, requests, and the fields shown to it."""

    # Constants of the judge's method, measured for all judges (docs/explanation/judge-scoring.md); no variable changes them.
    judge_max_orders: ClassVar[int] = 4  # orders of a group whose orders disagree; never below JUDGE_ORDERS
    judge_disagreement: ClassVar[float] = 0.15  # mean difference between orders above which a group is shown in further ones
    judge_tries: ClassVar[int] = 12  # unusable answers to a request, each asked for anew in another order, until its group is set aside
    judge_timeout_seconds: ClassVar[float] = 120  # the longest one try of a request; all its tries: 3 times that
    judge_look_every: ClassVar[int] = 50  # hours, one of which is also judged without the words of its agents in turn
    judge_look_after: ClassVar[int] = 100  # answers of a judge, after which such looks begin
    judge_group_size: ClassVar[int] = 16  # episodes in one request; larger groups are judged in overlapping parts

    openpipe_api_key: SecretStr | None = Field(None, description="Credentials of a judge named openpipe:...")
    openai_api_key: SecretStr | None = Field(None, description="Credentials of a judge named openai/...")
    openai_base_url: ShownAddress | None = Field(
        None, description="Where OpenAI's models are asked, as its own client reads it; JUDGE_BASE_URL wins. Unset: at OpenAI."
    )
    anthropic_api_key: SecretStr | None = Field(None, description="Credentials of a judge named anthropic/...")
    judge_base_url: ShownAddress | None = Field(
        None, description="An OpenAI-compatible server that answers as the judges, instead of their providers; keys may be absent then."
    )
    judge_model: str = Field(HEURISTIC, description="Any litellm model name, or heuristic. Nothing leaves the machine until it is set.")
    judge_audit_model: str | None = Field(None, description="A second judge, asked on a sample.")
    judge_budget_usd: float | None = Field(None, ge=0, description="The most a run, and a day, may spend on the judge.")
    judge_concurrency: int = Field(16, ge=1, description="Judge requests in flight at once.")
    judge_orders: int = Field(2, ge=1, description="Orders in which each group is shown to the judge.")
    credit: Literal["hour", "part", "answers"] = Field(
        "answers",
        description="The comparison that gives a call its advantage. hour: its agent's whole hour. part: its agent's part of the hour, "
        "each scored by itself. answers: as hour, and where a version of ours played in hours that can be replayed, all answers to each of "
        "its prompts instead.",
    )
    judge_settle_hours: float = Field(6, ge=0, description="Hours to wait for late rows before an LLM judges an hour by automation.")
    judge_request_tokens: int | None = Field(
        None,
        ge=2_000,
        description="The most tokens of a request to the judge. Unset: three quarters of its context, 32000 where that is not known.",
    )
    judge_private_fields: str = Field(
        "", description="Fields that a judge is not shown, separated by commas: NAME drops it, NAME=hash replaces it by a hash."
    )

    @property
    def by_part(self) -> bool:
        """True where the parts of an hour are judged by themselves."""
        return self.credit == "part"

    @field_validator("judge_model", "judge_audit_model")
    @classmethod
    def _judge_has_credentials(cls, value: str | None, others: ValidationInfo) -> str | None:
        variable = None if value is None else judge_key_variable(value)
        values = others.data  # the keys and the addresses stand above
        # A judge at a server of one's own needs no key: any address that applies will do.
        servers = ["judge_base_url", *(["openai_base_url"] if variable == "OPENAI_API_KEY" else [])]
        if variable is not None and not any(values.get(name) for name in (variable.lower(), *servers)):
            without = f"set JUDGE_MODEL={HEURISTIC}" if others.field_name == "judge_model" else "unset JUDGE_AUDIT_MODEL"
            raise ValueError(f"needs {variable}; set it, or {without}")
        return value


class TrainingSettings(SettingsGroup):
    """Trainer, data, steps and limits of a training, and the conditions for a version."""

    confirmation_markets: ClassVar[int] = 96  # fresh hours in which a version is confirmed against the deployed one before it is promoted

    trainer: Literal["serverless", "local", "gpu", "cpu", "dry"] | None = Field(
        None,
        description="The trainer; local: on this machine, with a GPU if there is one. With it a WANDB_API_KEY is for tracking alone. "
        "Unset: serverless with a WANDB_API_KEY, else local with TRAIN_RL_LOCAL.",
    )
    train_rl_local: bool = Field(False, description="Train on this machine when there is no WANDB_API_KEY.")
    base_model: str = Field("OpenPipe/Qwen3-14B-Instruct", description="Base of the serverless and GPU line.")
    local_base_model: str | None = Field(
        None,
        description="Base of the CPU line: a directory or hub id; dry: a trainer that trains nothing. "
        "Unset: the packaged SmolLM2-135M-Instruct.",
    )
    art_model_name: str = Field("babylon-agent", min_length=1, description="The model's name at the serverless training service.")
    lookback_hours: int = Field(
        168,
        gt=0,
        le=1_000_000,
        description="How far back a batch looks for freezable episodes, from the newest complete hour that holds rows.",
    )
    train_purposes: str = Field("action", description="Purposes of LLM calls that train, separated by commas.")
    train_synthetic: bool = Field(False, description="Train on texts synthesized from state and action.")
    max_staleness_versions: int | None = Field(None, ge=0, description="Oldest policy version, behind the newest, whose sequences train.")
    iterations: int = Field(10, gt=0, description="Most resumable steps of one training; fewer where its hours fill fewer, EPOCHS times.")
    windows_per_iteration: int = Field(20, gt=0, description="Most windows an iteration trains on.")
    epochs: int = Field(
        1,
        gt=0,
        description="Passes over a batch's hours, each in iterations of its own. On this machine a first version of several passes adapts "
        "feed-forward layers too.",
    )
    batch_size: int = Field(4, gt=0, description="Sequences a device step; the CPU trainer gathers as many for each pack of prompts.")
    gradient_accumulation_steps: int = Field(
        2, gt=0, description="Device steps an optimizer step; on the CPU each of 3 packs of prompts, so 24 sequences or more by default."
    )
    learning_rate: float | None = Field(None, gt=0, description="Unset: CPU 3e-3, or 2e-3 with EPOCHS above 1, then 3e-4; others 5e-6.")
    warmup_steps: int = Field(3, ge=0, description="Optimizer steps of linear warm-up.")
    kl_penalty: float = Field(0.05, ge=0, description="Weight of the KL to the base.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    training_time_limit_hours: float = Field(
        24,
        gt=0,
        description="After so many hours of running, those of finished iterations included, a serverless training posts nothing more, "
        "one on this machine stops, and the batch waits with its finished iterations.",
    )
    training_budget_usd: float | None = Field(None, ge=0, description="The most a paid training may cost.")
    serverless_base_url: ShownAddress | None = Field(
        None, description="The serverless training service's address. Unset: Weights & Biases'."
    )
    serverless_usd_per_million_tokens: float | None = Field(
        None, ge=0, description="The service's price, prompts included, for TRAINING_BUDGET_USD. Unset: not known."
    )
    mode: Literal["single", "list", "continuous", "backfill"] = Field("single", description="What a bare `babylon-rl train` does.")
    backfill_hours: int = Field(24, gt=0, le=1_000_000, description="Hours that MODE=backfill reaches back.")
    window_id: Window | None = Field(None, description="Pin one run to one hour.")
    batch_id: str | None = Field(None, description="Pin one run to an existing batch.")
    model_version: str | None = Field(None, description="Pin the version that a run registers.")
    min_improvement: float = Field(0.0, description="What the lower bound of the paired improvement must exceed, in dollars an hour.")
    benchmark_markets: int = Field(
        24, ge=2, description="Unseen market hours to compare a version in; up to 4 times as many while undecided. A pass needs 48."
    )

    @property
    def purposes_g(self) -> frozenset[str]:
        """Purposes of LLM calls that train."""
        return frozenset(part.strip() for part in self.train_purposes.split(",") if part.strip())


class AutomationSettings(SettingsGroup):
    """Starts of trainings, and runs: when, how many, and on which machines."""

    training_daily_min_trajectories: ClassVar[int] = 100  # with which a training starts after TRAINING_INTERVAL_HOURS

    automation_status: Literal["running", "stopped"] = Field(
        "running",
        description="Whether sensors and schedules run until the page Automation switches them off, or only once it switches them on. "
        "end_dead_runs runs either way.",
    )
    automation_seconds: float = Field(
        60, gt=0, description="Seconds between two looks of most sensors; the others keep their proportion to it."
    )
    training_min_trajectories: int = Field(1000, gt=0, description="Freezable trajectories before the sensor starts a training.")
    training_max_trajectories: int = Field(
        10_000, gt=0, description="The most trajectories of one batch; more make several, one after the other."
    )
    training_min_group_size: int = Field(10, gt=0, description="Readiness: freezable trajectories in a group.")
    training_min_groups: int = Field(10, gt=0, description="Readiness: groups of that size.")
    data_quality_threshold: float = Field(0.95, ge=0, le=1, description="Readiness: mean quality of the newest rows.")
    training_interval_hours: float = Field(
        24,
        gt=0,
        description="Hours after the last completed training in which automation starts one only with TRAINING_MIN_TRAJECTORIES; "
        "also the first pause after one that failed.",
    )
    max_concurrent_runs: int = Field(
        4, ge=1, description="The most runs at once, with CELERY_BROKER_URL of each of the workers' queues; more wait in Dagster's queue."
    )
    celery_broker_url: BrokerUrl | None = Field(
        None,
        description="Redis (redis://...) or RabbitMQ (amqp://...) through which runs go to `babylon-rl worker`. Unset: each run is a "
        "process beside the code server.",
    )
    trainer_kubernetes: str | None = Field(
        None,
        description="The pod of a training on Kubernetes, as JSON of Dagster's tag dagster-k8s/config: container_config, pod_spec_config, "
        "... (docs/howto/kubernetes.md). Unset: as every other run.",
    )

    @field_validator("trainer_kubernetes")
    @classmethod
    def _is_object_of_objects(cls, value: str | None) -> str | None:
        try:
            parts = {} if value is None else json.loads(value)
        except json.JSONDecodeError as broken:
            raise ValueError(f"must be JSON: {broken}") from None
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            raise ValueError('must be an object of objects such as {"pod_spec_config": {"node_selector": {"gpu": "yes"}}}')
        return value


class StorageSettings(SettingsGroup):
    """Storage of checkpoints, and Weights & Biases."""

    checkpoints_kept: ClassVar[int] = 10  # newest of a line that stay here, besides the best, the deployed and those in use

    wandb_api_key: SecretStr | None = Field(None, description="Weights & Biases: metrics, serverless training, hosted inference.")
    wandb_entity: str | None = Field(None, description="The Weights & Biases entity. Unset: the key's own.")
    wandb_project: str = Field("babylon-rl-training", description="The Weights & Biases project.")
    wandb_mode: Literal["online", "offline", "disabled"] = Field(
        "online", description="Whether trainings go to Weights & Biases (with a key), or (offline) into files for `wandb sync`."
    )
    wandb_base_url: WebAddress | None = Field(None, description="The address of Weights & Biases. Unset: its own.")
    model_storage_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        description="Where checkpoints and their base are uploaded; machines that lack them fetch them from there (any fsspec URL). "
        "Unset: they stay here.",
    )
    compute_logs_url: LogsUrl | None = Field(
        None,
        repr=False,
        description="Where the output of Dagster's runs is uploaded, for a webserver on another machine: s3://bucket/prefix, gs:// or "
        "az://, by dagster-aws, dagster-gcp or dagster-azure. Unset: it stays here.",
    )
    retention_days: float = Field(
        90,
        ge=1,
        description="Days that caches, transcripts of quarantined groups, gateway calls and logs of ended runs stay; then `babylon-rl "
        "cleanup` and the nightly schedule remove them.",
    )

    @property
    def wandb_key(self) -> str:
        """WANDB_API_KEY in clear text; empty if not set."""
        return "" if self.wandb_api_key is None else self.wandb_api_key.get_secret_value()


class RecordingSettings(SettingsGroup):
    """Recording of agents, and the fields left out."""

    trajectory_sampling_rate: float = Field(1.0, ge=0, le=1, description="Share of trajectories that the recorder keeps.")
    record_agent_trajectories: bool = Field(True, description="False makes the recorder a null object.")
    record_private_fields: str = Field(
        "",
        description="Personal fields that the gateway drops from recorded calls, separated by commas: agent (agent=hash replaces it by a "
        "hash), prompts, response, reasoning, provider_accesses.",
    )
    record_hash_key: SecretStr | None = Field(
        None,
        description="Key of the hashes of agents (agent=hash): one for all gateways and for Dagster, which looks for hashed agents' hours. "
        "Unset: a random one in BABYLON_RL_HOME.",
    )


class ServingSettings(SettingsGroup):
    """Versions for agents: the gateway, rollouts, the admin API."""

    rollout_steps: ClassVar[tuple[float, ...]] = (1, 10, 25, 50, 100)  # percent of agents at each step of a gradual rollout
    upload_limit_mb: ClassVar[int] = 1024  # of weights that `serve admin` takes; an adapter has tens of megabytes
    gateway_timeout_seconds: ClassVar[float] = 60  # for an answer, a stream's first token, or each part after it

    wandb_model: str | None = Field(None, description="An inference model that all agents get instead of the registry's.")
    cron_secret: SecretStr | None = Field(
        None, description="Bearer token of the cron endpoints of `serve admin`. Unset: they answer on loopback only."
    )
    dagster_url: WebAddress = Field(
        "http://127.0.0.1:3000", description="Where `serve admin` reaches Dagster's webserver to launch runs: that of `babylon-rl dev`."
    )
    admin_url: WebAddress = Field(
        "http://127.0.0.1:8090", description="Where people reach `serve admin`: the Dagster UI links to its page, `/admin`."
    )
    node_env: str | None = Field(None, description="The game's environment name; production turns USE_RL_MODEL's default off.")
    environment: str | None = Field(None, description="As NODE_ENV.")
    use_rl_model: bool | None = Field(
        None, description="Master switch at inference: false gives all agents the base. Unset: on, but off in production."
    )
    rl_model_version: str | None = Field(
        None, description="The version that all agents get; its checkpoint always stays on this machine. Unset: as the registry says."
    )
    rl_fallback_to_base: bool = Field(True, description="Fall back to the base model on an error.")
    rl_rollout_percentage: float = Field(
        100, ge=0, le=100, description="Upper bound on the share of agents that get a version by the registry."
    )
    local_endpoint: str = Field("http://localhost:8000", repr=False, description="A self-hosted OpenAI-compatible server; /v1 is optional.")
    embedding_endpoint: str | None = Field(
        None,
        repr=False,
        description="An OpenAI-compatible server that gets the gateway's /v1/embeddings; at api.openai.com with OPENAI_API_KEY.",
    )
    auto_promote: bool = Field(
        False, description="Roll out a version that passed the gate without a person, once it was confirmed in fresh markets."
    )
    game_switch: bool = Field(
        False,
        description="Write the deployed version into SystemSettings too, so that agents that call Weights & Biases themselves switch.",
    )

    @property
    def in_production(self) -> bool:
        return "production" in (self.node_env, self.environment)

    @property
    def rl_enabled(self) -> bool:
        """USE_RL_MODEL, by default on but in production."""
        return not self.in_production if self.use_rl_model is None else self.use_rl_model


class AlertSettings(SettingsGroup):
    """Channels of alerts, and the receiver of traces."""

    discord_webhook_url: WebHook | None = Field(None, description="A Discord webhook that gets alerts.")
    alert_webhook_url: WebHook | None = Field(
        None,
        description='A Slack-compatible webhook that gets alerts: a POST of {"text": ...} (Slack, Mattermost, Teams by its workflows).',
    )

    otel_exporter_otlp_endpoint: ShownAddress | None = Field(
        None, description="An OpenTelemetry collector that gets traces by OTLP over HTTP, such as http://127.0.0.1:4318. Unset: no traces."
    )


# In reverse, as pydantic takes the fields of the last base first: keys and addresses are known when the judge's model is validated.
class Settings(
    AlertSettings,
    ServingSettings,
    RecordingSettings,
    StorageSettings,
    AutomationSettings,
    TrainingSettings,
    JudgeSettings,
    HourSettings,
    DatabaseSettings,
    BaseSettings,
):
    """All groups: a field for each environment variable, named in upper case.

    A function that needs one group takes that group's class, and any Settings is one.
    """

    model_config = SettingsConfigDict(env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True, validate_default=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the stored choices of a demo, below the environment and ``.env``."""
        # Each source is read once: that is most of the time of loading.
        chosen = [source() for source in (init_settings, env_settings, dotenv_settings)]
        # The strongest last: ``.env``, the environment, arguments.
        given = chosen[2] | chosen[1] | chosen[0]
        # Without ``.env`` no other file is read either.
        demo = demo_choices(settings_cls, given) if getattr(dotenv_settings, "env_file", None) else {}
        return tuple(InitSettingsSource(settings_cls, values) for values in (*chosen, demo))

    def warnings(self) -> list[str]:
        """Allowed but unusual values, one sentence each."""
        sentences = []
        if self.batch_size > 64:
            sentences.append(f"BATCH_SIZE is {self.batch_size}: above 64 a device step rarely fits in memory.")
        if self.learning_rate is not None and not 1e-8 <= self.learning_rate <= 1e-3:
            sentences.append(f"LEARNING_RATE is {self.learning_rate:g}: outside 1e-8 to 1e-3 training usually collapses or stands still.")
        if self.kl_penalty > 1:
            sentences.append(f"KL_PENALTY is {self.kl_penalty:g}: above 1 the policy hardly moves.")
        return sentences


# In the order in which .env.example and the docs show them.
GROUPS = tuple(group for group in reversed(Settings.__bases__) if issubclass(group, SettingsGroup))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and ``.env``; ``overrides`` (field names) win. Raises SettingsError: a line for each refused value."""
    # A setting on a line that the parser skips would silently have its default.
    lines = unreadable_lines(Path(ENV_FILE))
    try:
        settings = Settings(**overrides)
    except ValidationError as invalid:
        lines += [explained(Settings, error) for error in invalid.errors(include_url=False)]
    if lines:
        noun = "setting is" if len(lines) == 1 else "settings are"
        raise SettingsError(f"{len(lines)} {noun} not allowed:\n" + "\n".join(f"  {line}" for line in lines))
    return settings
