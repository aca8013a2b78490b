"""Command ``alerts``: causes that were alerted, and a test message."""

from typing import Annotated

import typer

from babylon_rl.alerts import send_test
from babylon_rl.cli.output import JsonOption, emit, listed, say
from babylon_rl.errors import CheckFailed, UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.alerts import StoredAlert, read_alerts
from babylon_rl.store.database import open_database
from babylon_rl.windows import moment, utc_now

app = typer.Typer()


@app.command("alerts")
def alerts(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to every channel that is set.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Alerts, those whose cause lasts first: since when, whether sent, and what to do."""
    settings = load_settings()
    if test:
        return _test(settings, as_json)
    with open_database(settings) as database, database.connect() as connection:
        rows = read_alerts(connection)
    cells = [[alert.cause, *map(moment, (alert.first_seen_at, alert.sent_at, alert.resolved_at)), alert.says] for alert in rows]
    emit({"alerts": [_document(alert) for alert in rows]}, [listed(["cause", "since", "sent", "ended", "says"], cells)], as_json)
    for alert in rows:
        if alert.open:
            say(f"{alert.cause}: {alert.advice}")


def _test(settings: Settings, as_json: bool) -> None:
    sent = send_test(settings, utc_now())
    if not sent.causes and not sent.failures:
        raise UsageError("No channel is set: DISCORD_WEBHOOK_URL, ALERT_WEBHOOK_URL or ALERT_COMMAND.")
    words = [f"{channel}: taken" for channel in sent.causes] + [f"{channel}: {reason}" for channel, reason in sent.failures.items()]
    emit({"taken": sent.causes, "failed": sent.failures}, ["\n".join(words)], as_json)
    if sent.failures:
        raise CheckFailed(f"{', '.join(sent.failures)} did not take the message.")


def _document(alert: StoredAlert) -> dict[str, object]:
    return {
        "cause": alert.cause, "kind": alert.kind, "says": alert.says, "advice": alert.advice,
        "firstSeenAt": moment(alert.first_seen_at), "lastSeenAt": moment(alert.last_seen_at), "sentAt": moment(alert.sent_at),
        "resolvedAt": moment(alert.resolved_at), "channels": list(alert.channels), "tries": alert.tries, "error": alert.error,
    }  # fmt: skip
