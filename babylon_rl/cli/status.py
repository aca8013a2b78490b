"""Commands ``status`` and ``alerts``: state of the system, and causes of alerts."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from babylon_rl.alerts import send_test
from babylon_rl.cli.output import JsonOption, emit, listed, say
from babylon_rl.errors import CheckFailed, UsageError
from babylon_rl.reporting.numbers import about
from babylon_rl.serving.status import status_document
from babylon_rl.serving.status_shapes import StatusDocument
from babylon_rl.settings import load_settings
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.columns import document_of
from babylon_rl.store.database import open_database
from babylon_rl.windows import moment, utc_now

app = typer.Typer()
VERSIONS_SHOWN, REASONS_SHOWN = 5, 4


@app.command("status")
def status(as_json: JsonOption = False) -> None:
    """Show readiness, training, judge, versions and health. Also the rollout and alerts."""
    settings = load_settings()
    # This command changes nothing, so Dagster's schema is not made here.
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        document = status_document(connection, settings, utc_now())
    emit(document, [listed(["", document.status], list(_lines(document)))], as_json)


def _lines(found: StatusDocument) -> Iterator[tuple[str, str]]:
    """Label and text of each line, in the order of the pipeline."""
    came, jobs, stats = found.automation.data_collection, found.automation.training, found.trajectory_stats
    age = "none yet" if came.newest_age_hours is None else f"{about(3600 * came.newest_age_hours)} ago"
    roughly = "about " if stats.counted == "estimated" else ""
    lately = f"{came.last24h} in 24 h ({came.rate_per_hour:g} an hour), {came.last7d} in 7 days"
    yield "data", f"{lately}, {roughly}{stats.count} in all; newest {age}"
    ready = found.readiness
    counts = f"{ready.stats.total_trajectories} could train, {ready.stats.unscored_trajectories} of them not scored, in groups: "
    yield "readiness", f"{ready.reason} ({counts}{ready.stats.scenario_groups}; quality {ready.stats.data_quality:.1%})"
    reasons = list(ready.not_trainable.items())
    if reasons:
        more = f", {len(reasons) - REASONS_SHOWN} more reasons" if len(reasons) > REASONS_SHOWN else ""
        yield "left out", ", ".join(f"{number} {reason}" for reason, number in reasons[:REASONS_SHOWN]) + more
    judge = found.judge
    spent = f"${judge.spent_today_usd:.2f} today" + ("" if judge.budget_usd is None else f" of ${judge.budget_usd:g}")
    agreed = judge.agreement
    agreement = "agreement not measured" if agreed is None else f"agreement {agreed.mean:.2f} ({agreed.low:.2f} to {agreed.high:.2f})"
    hours = f"{judge.hours_scored} hours scored, {judge.hours_waiting} wait, {judge.hours_quarantined} in quarantine"
    if judge.hours_by_other_rules:
        cost = "" if judge.other_rules_usd is None else f", which cost ${judge.other_rules_usd:.2f} then"
        says = f"{judge.hours_by_other_rules} hours have scores of another judge, or from before a rule or a setting changed{cost}"
        yield "stale scores", f"{says}: `babylon-rl score --stale --dry-run` says the price of new ones"
    differ = "-" if judge.disagreement is None else f"{judge.disagreement:.3f}"
    yield "judge", f"{judge.model}: {hours}; disagreement {differ}; {agreement}; {spent}"
    yield "training", _training(found)
    yield "", f"last completed {jobs.last_completed or 'never'}; the next is due {jobs.next_scheduled or 'at once'}"
    of = found.automation.models
    deployed, newest, training = (version or "none" for version in (of.deployed_version, of.latest, of.training_version))
    yield "versions", f"deployed {deployed}, newest {newest}, in training {training}"
    for version in found.lineage[:VERSIONS_SHOWN]:
        yield "", _version(version)
    if found.rollout is not None:
        rollout = found.rollout
        guards = "; ".join(f"{guard.name} {guard.verdict}" for guard in rollout.guards)
        stands = f"{rollout.version} {rollout.state} at {rollout.percentage:g} % since {rollout.step_since}"
        yield "rollout", f"{stands}: {guards}" if guards else stands
    for alert in found.alerts:
        yield "notice" if alert.notice else "alert", f"{alert.cause}: {alert.says} {alert.advice}"
    health = found.automation.health
    # The label stands beside the first line of the block. Weights & Biases is no part of a healthy system and cannot fail it.
    for name, words in health.details.items():
        state = "ok  " if getattr(health, name) else "FAIL" if name != "wandb" else "-   "
        yield "health" if name == "database" else "", f"{state} {name}: {words}"


def _training(found: StatusDocument) -> str:
    progress = found.progress
    if progress is None:
        return "none under way"
    loss = next((loss for loss in reversed(progress.losses) if loss is not None), None)
    text = f"{progress.batch_id} is {progress.state}, {progress.fraction:.0%} done, {progress.activity}"
    text += "" if loss is None else f", loss {loss:.4f}"
    if progress.eta_seconds is None:
        return f"{text}; its end is not known: no training of this kind has been completed"
    error = "" if progress.eta_error is None else f", which miss each other by {progress.eta_error:.0%}"
    fitted = f" (fitted to {progress.fitted_to} runs{error})" if progress.fitted_to else ""
    return f"{text}; ends in about {about(progress.eta_seconds)}{fitted}"


def _version(version: Any) -> str:
    gain = ""
    if version.improvement is not None:
        against = f"{version.reference or 'base'} ({version.improvement_low:+.0f} to {version.improvement_high:+.0f})"
        gain = f", {version.improvement:+.0f} dollars an hour against {against}"
    return f"{version.version} {version.status}, from {version.parent or 'base'}, gate: {version.decision or 'none'}{gain}"


@app.command("alerts")
def alerts(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to every channel that is set.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show alerts: since when, whether sent, and what to do. Those whose cause lasts come first."""
    settings = load_settings()
    if test:
        sent = send_test(settings, utc_now())
        if not sent.causes and not sent.failures:
            raise UsageError("No channel is set: DISCORD_WEBHOOK_URL or ALERT_WEBHOOK_URL.")
        words = [f"{channel}: taken" for channel in sent.causes] + [f"{channel}: {reason}" for channel, reason in sent.failures.items()]
        emit({"taken": sent.causes, "failed": sent.failures}, ["\n".join(words)], as_json)
        if sent.failures:
            raise CheckFailed(f"{', '.join(sent.failures)} did not take the message.")
        return
    with open_database(settings) as database, database.connect() as connection:
        rows = read_alerts(connection)
    cells = [[alert.cause, *map(moment, (alert.first_seen_at, alert.sent_at, alert.resolved_at)), alert.says] for alert in rows]
    document = {"alerts": [document_of(alert) for alert in rows]}
    emit(document, [listed(["cause", "since", "sent", "ended", "says"], cells)], as_json)
    say(*(f"{alert.cause}: {alert.advice}" for alert in rows if alert.open))
