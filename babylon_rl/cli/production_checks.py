"""The checklist of ``verify-system --production``: a line for each row of docs/howto/production.md.

A row fails where a setting or a table shows it to be wrong. What cannot be seen from here is a warning that says what to look at.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from babylon_rl.cli.system_checks import FAIL, PASS, WARN, attempt
from babylon_rl.errors import BabylonError, NoTrainer
from babylon_rl.serving.recorded_privacy import why_agents_unknown
from babylon_rl.setting_sources import ENV_FILE, secret_settings, setting_sources
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.benchmarks import read_reports
from babylon_rl.store.client_keys import read_keys
from babylon_rl.store.connection import Connection, libpq_url
from babylon_rl.store.database import open_database
from babylon_rl.store.registry import deployed_model, read_models
from babylon_rl.training.backends.protocol import trainer_choice
from babylon_rl.types import Check

LEAST_SECRET = 16  # characters
_LOCAL = {"localhost", "127.0.0.1", "::1", ""}
# Values of sslmode that never fall back to the clear.
_TLS = {"require", "verify-ca", "verify-full"}


def check_production(settings: Settings) -> Iterator[Check]:
    """Go through the checklist, in the order of the page."""
    yield Check("RL is a decision", *_switch(settings))
    yield attempt("keys", lambda: _keys(settings))
    yield Check("fallback", *_fallback(settings))
    yield Check("monitoring and alerts", *_alerts(settings))
    try:
        with open_database(settings, prepare=False) as database, database.connect(autocommit=True) as connection:
            yield attempt("validation before deployment", lambda: _validation(settings, connection))
            yield Check("database", *_database(settings))
            yield attempt("servers", lambda: _servers(settings, connection))
    except BabylonError as failed:
        yield Check("validation before deployment", FAIL, str(failed))
    yield Check("Dagster's UI", *_dagster_ui(settings))
    yield Check("money", *_money(settings))
    yield attempt("privacy", lambda: _privacy(settings))
    # These two hold by how the package is made; they stand here because the page has rows for them.
    yield Check("weights", PASS, "only safetensors are loaded, and an upload is bounded in size")
    yield Check("room", PASS, f"{settings.checkpoints_kept} checkpoints of a line are kept; the line disk says what is free")
    yield Check("versions", WARN, "not seen from here: install from requirements.lock with hashes, and look at advisories on upgrades")
    yield Check("an emergency", WARN, "not seen from here: try `babylon-rl models rollback` and USE_RL_MODEL=false before they are needed")


def _switch(settings: Settings) -> tuple[str, str]:
    if settings.use_rl_model is None and not settings.in_production:
        return FAIL, "USE_RL_MODEL is not set and NODE_ENV is not production, so agents get RL versions by default. Set one of them."
    on = "agents get RL versions" if settings.rl_enabled else "agents get the base until USE_RL_MODEL is true"
    return PASS, f"{on}: " + ("NODE_ENV or ENVIRONMENT is production" if settings.use_rl_model is None else "USE_RL_MODEL is set")


def _keys(settings: Settings) -> tuple[str, str]:
    secrets = secret_settings(Settings)
    in_file = [name.upper() for name, source in setting_sources(Settings).items() if name in secrets and source == ".env"]
    path = Path(ENV_FILE)
    if not in_file:
        return PASS, "no secret is in .env"
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return FAIL, f"{path.absolute()} holds {', '.join(in_file)} and others may read it. Run `chmod 600 {path}`."
    return PASS, f"{path.absolute()} holds {', '.join(in_file)}, for its owner alone"


def _fallback(settings: Settings) -> tuple[str, str]:
    if not settings.rl_fallback_to_base:
        return FAIL, "RL_FALLBACK_TO_BASE is false: agents stop when a version fails. Set it to true."
    return PASS, "the base answers when a version fails"


def _alerts(settings: Settings) -> tuple[str, str]:
    channels = [name.upper() for name in ("discord_webhook_url", "alert_webhook_url") if getattr(settings, name) is not None]
    if not channels:
        return FAIL, "no channel gets alerts: set DISCORD_WEBHOOK_URL or ALERT_WEBHOOK_URL, then `babylon-rl alerts --test`."
    return PASS, f"alerts go to {', '.join(channels)}; `babylon-rl alerts --test` tries it. Scrape /metrics of gateway and admin API"


def _validation(settings: Settings, connection: Connection) -> tuple[str, str]:
    deployed = deployed_model(read_models(connection))
    if settings.min_improvement < 0:
        return FAIL, f"MIN_IMPROVEMENT is {settings.min_improvement:g}: the gate passes versions that earn less. Set it to 0 or more."
    if deployed is not None and not deployed.foreign:
        gated = read_reports(connection).get(deployed.training_batch or "")
        decision = "no decision" if gated is None else gated.decision
        if decision != "pass":
            return FAIL, f"{deployed.version} is deployed, and its gate says {decision}. `babylon-rl models rollback` takes it back."
        return PASS, f"{deployed.version} is deployed and passed the gate; rollouts begin with {settings.rollout_steps[0]:g} %"
    return PASS, f"no version of ours is deployed; rollouts begin with {settings.rollout_steps[0]:g} %"


def _database(settings: Settings) -> tuple[str, str]:
    if settings.database_url is None:
        return FAIL, "the embedded server is for trials: set DATABASE_URL, with a role that has the least rights."
    parameters = conninfo_to_dict(libpq_url(settings.database_url.get_secret_value()))
    mode = parameters.get("sslmode", "prefer")
    # host=/... is the directory of a unix socket; of several servers each counts.
    away = [host for host in str(parameters.get("host", "")).split(",") if host not in _LOCAL and not host.startswith("/")]
    if away and mode not in _TLS:
        return FAIL, f"DATABASE_URL leads off this machine with sslmode={mode}, which may be in the clear. Add sslmode=require or stricter."
    return PASS, "DATABASE_URL stays on this machine or uses TLS; not seen from here: least rights, and a backup that was restored once"


def _servers(settings: Settings, connection: Connection) -> tuple[str, str]:
    keys = [key for key in read_keys(connection) if key.revoked_at is None]
    secret = "" if settings.cron_secret is None else settings.cron_secret.get_secret_value()
    # Both kinds, as an agent that holds an admin key could deploy.
    if not any(key.admin for key in keys) or all(key.admin for key in keys):
        return FAIL, "a key for agents and one for the admin API are needed: `babylon-rl keys create NAME`, and with --admin."
    if secret and len(secret) < LEAST_SECRET:
        return FAIL, f"CRON_SECRET has fewer than {LEAST_SECRET} characters. Make it long and random."
    unlimited = [key.name for key in keys if not key.admin and key.requests_per_minute is None and key.tokens_per_minute is None]
    if unlimited:
        return WARN, f"without a budget: {', '.join(unlimited)}. `babylon-rl keys create` takes --requests and --tokens"
    return PASS, f"{len(keys)} keys; CRON_SECRET is {'set' if secret else 'not set, so that cron endpoints serve this machine alone'}"


def _dagster_ui(settings: Settings) -> tuple[str, str]:
    host = urlsplit(settings.dagster_url).hostname or ""
    if host in _LOCAL:
        return PASS, f"{settings.dagster_url} is on this machine; it has no login of its own"
    return WARN, f"{settings.dagster_url} is off this machine: see that a login stands before it, as it has none"


def _money(settings: Settings) -> tuple[str, str]:
    missing = [] if settings.judge_model == HEURISTIC or settings.judge_budget_usd is not None else ["JUDGE_BUDGET_USD"]
    try:
        service = trainer_choice(settings).service
    except NoTrainer as none:
        return FAIL, str(none)
    if service is not None:
        missing += [name for name in ("TRAINING_BUDGET_USD", service.price_variable) if getattr(settings, name.lower()) is None]
    if missing:
        return FAIL, f"no limit: set {' and '.join(missing)}."
    return PASS, "every paid service has a limit" if service is not None or settings.judge_model != HEURISTIC else "nothing paid is used"


def _privacy(settings: Settings) -> tuple[str, str]:
    given = {"RECORD_PRIVATE_FIELDS": settings.record_private_fields, "JUDGE_PRIVATE_FIELDS": settings.judge_private_fields}
    unset = [name for name, value in given.items() if not value]
    if (unknown := why_agents_unknown(settings)) is not None:
        return (
            FAIL,
            f"{unknown}, by a guard of a rollout or an A/B test. agent=hash with a RECORD_HASH_KEY keeps the names out all the same.",
        )
    if unset and settings.judge_model != HEURISTIC:
        return WARN, f"{' and '.join(unset)} keep nothing back; the line judge says what leaves. See that this was decided"
    return PASS, "; ".join(f"{name}={value or 'nothing is kept back'}" for name, value in given.items())
