"""Alerts: causes for a person, each sent once to every channel that is set.

``send_alerts`` is one tick: it looks for the causes of CAUSES (once an hour while nothing is written), keeps them in babylon_rl.alerts, and
sends what is due. A channel that fails is tried again next time. One that has taken an alert gets it twice only if a process dies, or
the receiver answers too late. ``raise_alert`` adds a cause that is not in the database.
"""

import html
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from http.client import HTTPException
from statistics import fmean
from typing import NamedTuple

from babylon_rl.judge.consensus import rank_with_pnl
from babylon_rl.reporting.numbers import cut
from babylon_rl.settings import AlertSettings, Settings
from babylon_rl.store import alerts as stored
from babylon_rl.store.alerts import ROLLBACK_DONE, StoredAlert
from babylon_rl.store.batches import last_completed_at, read_batches
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import READ_TABLES
from babylon_rl.store.judge_report import hour_verdicts
from babylon_rl.store.judge_requests import spent_on
from babylon_rl.store.observation import watermark
from babylon_rl.store.releases import AUTOMATION, read_events
from babylon_rl.store.windows import recent_hours
from babylon_rl.training.batches import pending_batches
from babylon_rl.training.readiness import readiness, sampled_quality, smaller_batch_due, with_smaller_minimum
from babylon_rl.windows import window_of

BLOCKED_FOR = timedelta(days=1)
TIMEOUT_S = 10.0
LEAST_SAMPLE = 10  # trajectories below which their quality says nothing
PERIOD, LEAST_HOURS, LEVEL = timedelta(days=7), 24, 0.01  # of the comparison of scores with P&L
NEWEST_HOURS, LEAST_RANKED, LEAST_RANK = 24, 12, 0.3  # of the rank correlation of scores with P&L (docs/decisions/0037)
# Discord refuses a longer message.
_DISCORD_CHARACTERS = 2000
# New rows of the game change nothing before their hour is read, which is a write to READ_TABLES.
_LOOKED_AT = (
    *READ_TABLES, "babylon_rl.batches", "public.training_batches", "babylon_rl.judge_pending", "babylon_rl.judge_requests",
    "babylon_rl.rollout_events",
)  # fmt: skip
_ARRIVING = ("public.trajectories", "public.llm_call_logs")
# Begins the error of a batch that a person ended, who need not be alerted.
_CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True)
class Cause:
    """Kind of alert; ``look`` returns a sentence by subject for each present cause.

    ``after``: how long a cause must last before it is sent.
    """

    kind: str
    title: str
    look: Callable[[Connection, Settings, datetime], Mapping[str, str]]
    advice: str
    after: timedelta = timedelta(0)


@dataclass
class Sent:
    """Outcome of a tick: the causes sent, and the channels that failed with their reasons.

    ``looked`` is for the next tick: the state in which this one, or one before it, looked for causes.
    """

    causes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    looked: str | None = None

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        parts = [f"Sent {', '.join(self.causes)}."] if self.causes else []
        parts += [f"{channel} did not take an alert: {reason}; it is tried again." for channel, reason in self.failures.items()]
        return " ".join(parts) or "Nothing to send."


class Channel(NamedTuple):
    """Address of a receiver, and the JSON that it takes of a text."""

    url: str
    body_of: Callable[[str], object]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A receiver does not choose which address of this network is asked: a redirect is a refusal."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects())


def send_alerts(connection: Connection, settings: Settings, now: datetime, looked: str | None = None) -> Sent:
    """Look for all causes, and send due ones to every configured channel. ``connection`` is in autocommit.

    ``looked`` is what the tick before returned: if nothing was written in this hour since, no cause is looked for.
    """
    mark = watermark(connection, _LOOKED_AT, window_of(now), settings.model_dump_json(), without_inserts=_ARRIVING)
    if mark is None or mark != looked:
        seen = []
        for cause in CAUSES:
            for subject, says in cause.look(connection, settings, now).items():
                seen.append(raise_alert(connection, cause.kind, subject, says, cause.advice, now, after=cause.after))
        # Before sending: a cause that has ended before it was due is then never sent.
        stored.resolve(connection, [cause.kind for cause in CAUSES], seen, now)
    sent = _send_due(connection, settings, now)
    sent.looked = mark
    return sent


def raise_alert(
    connection: Connection, kind: str, subject: str, says: str, advice: str, now: datetime, *, after: timedelta = timedelta(0)
) -> str:
    """Note a cause for the next tick to send, and return its key.

    Noting it again sends nothing. ``subject`` tells causes of a kind apart: a run's id, a version. ``advice`` says what to do.
    """
    key = f"{kind}/{subject}" if subject else kind
    stored.see(connection, kind, key, says, advice, now, after)
    return key


def send_test(settings: AlertSettings, now: datetime) -> Sent:
    """Send a test message to every channel that is set."""
    alert = StoredAlert("test", "test", "This is a test.", "Nothing: alerts arrive here.", now, now, now, None, None, (), 0, None)
    sent, channels = Sent(), _channels(settings)
    sent.failures = {name: failure for name, channel in channels.items() if (failure := _failure(channel, alert)) is not None}
    sent.causes = [name for name in channels if name not in sent.failures]
    return sent


def message(alert: StoredAlert) -> str:
    """The plain text of an alert: title, cause, advice and time."""
    title = next((cause.title for cause in CAUSES if cause.kind == alert.kind), alert.kind.replace("_", " ").capitalize())
    ended = "" if alert.resolved_at is None else f" It ended at {alert.resolved_at:%Y-%m-%d %H:%M} UTC."
    sender, to_do = ("babylon_rl, notice", "") if alert.notice else ("babylon_rl", "What to do: ")
    text = f"{sender}: {title}\n{alert.says}\n{to_do}{alert.advice}\nSince {alert.first_seen_at:%Y-%m-%d %H:%M} UTC.{ended}"
    return text.replace("`", "")


def _send_due(connection: Connection, settings: AlertSettings, now: datetime) -> Sent:
    sent, channels, tried = Sent(), _channels(settings), list[str]()
    while channels:
        # The lock is held while the message is under way, so that no other tick sends it too.
        with connection.transaction():
            alert = stored.lock_due(connection, now, tried)
            if alert is None:
                break
            tried.append(alert.cause)
            done = list(alert.channels)
            for name, channel in channels.items():
                # A channel that failed in this tick is not asked again: it would hold up the others.
                if name in done or name in sent.failures:
                    continue
                if (failure := _failure(channel, alert)) is None:
                    done.append(name)
                else:
                    sent.failures[name] = failure
            missing = [f"{name}: {sent.failures[name]}" for name in channels if name not in done]
            stored.note_try(connection, alert.cause, done, "; ".join(missing) or None, None if missing else now)
            if not missing:
                sent.causes.append(alert.cause)
    return sent


def _channels(settings: AlertSettings) -> dict[str, Channel]:
    channels: dict[str, Channel] = {}
    if settings.discord_webhook_url is not None:
        # A name or group in the text notifies nobody there.
        mentions: dict[str, list[str]] = {"parse": []}
        channels["discord"] = Channel(
            settings.discord_webhook_url.get_secret_value(),
            lambda text: {"content": cut(text, _DISCORD_CHARACTERS), "allowed_mentions": mentions},
        )
    if settings.alert_webhook_url is not None:
        # Slack takes <, > and & for markup.
        channels["webhook"] = Channel(settings.alert_webhook_url.get_secret_value(), lambda text: {"text": html.escape(text, quote=False)})
    return channels


def _failure(channel: Channel, alert: StoredAlert) -> str | None:
    """Send an alert to a channel. Return why it was not taken, without the channel's address, or None."""
    # The key lets a receiver that answered too late recognize the second try.
    headers = {
        "content-type": "application/json",
        "user-agent": "babylon-rl",
        "idempotency-key": f"{alert.cause} {alert.first_seen_at.isoformat()}".encode("ascii", "replace").decode(),
    }
    try:
        body = json.dumps(channel.body_of(message(alert))).encode()
        with _OPENER.open(urllib.request.Request(channel.url, body, headers), timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as refused:
        refused.close()
        return f"status {refused.code}"
    except (OSError, HTTPException, ValueError) as failed:
        reason = failed.reason if isinstance(failed, urllib.error.URLError) else failed
        return str(reason).replace(channel.url, "***") or type(failed).__name__
    except Exception as failed:  # a tick that ended here would forget which channels have taken it
        return f"{type(failed).__name__} in its delivery"  # whose message may hold an address


def _training_failed(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    since = now - stored.FORGOTTEN_AFTER
    return {
        batch.batch_id: _sentence(f"{batch.batch_id} ({batch.version}) failed: {batch.error or 'no reason was recorded'}")
        for batch in read_batches(connection, ("failed",))
        if (batch.completed_at or batch.heartbeat_at) >= since and not (batch.error or "").startswith(_CANCELLED)
    }


def _readiness_blocked(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    last = last_completed_at(connection)
    if pending_batches(connection) or smaller_batch_due(last, settings, now) > now:
        return {}
    # Some time after the last training fewer trajectories are enough: blocked is what cannot make that smaller batch either.
    found = readiness(connection, with_smaller_minimum(settings), now, may_be_kept=True)
    since = "No training has been completed yet" if last is None else f"The last training was completed at {last:%Y-%m-%d %H:%M} UTC"
    return {} if found.ready else {"": _sentence(f"{since}, and no other can start: {found.reason}")}


def _quality_fell(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    quality = sampled_quality(connection, settings, now)
    if quality.rows < LEAST_SAMPLE or quality.mean >= settings.data_quality_threshold:
        return {}
    shares = {"have steps": quality.has_steps, "have LLM calls": quality.has_calls, "have long prompts": quality.long_prompts,
              "have results": quality.has_results}  # fmt: skip
    worst = min(shares, key=lambda name: shares[name])
    return {
        "": f"The quality of the newest {quality.rows} trajectories is {quality.mean:.1%}, and DATA_QUALITY_THRESHOLD is "
        f"{settings.data_quality_threshold:.1%}: only {shares[worst]:.0%} {worst}."
    }


def _judge_budget_spent(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    waiting = stored.hours_waiting(connection, "JUDGE_BUDGET_USD")
    if settings.judge_budget_usd is None or not waiting:
        return {}
    spent, _ = spent_on(connection, now)
    wait = "1 hour waits" if waiting == 1 else f"{waiting} hours wait"
    return {"": f"${spent:.2f} of JUDGE_BUDGET_USD (${settings.judge_budget_usd:g}) is spent today, and {wait} for the judge."}


def _rollbacks(connection: Connection, settings: Settings, now: datetime, *, by_guard: bool) -> dict[str, str]:
    found = {}
    for event in read_events(connection, since=now - stored.FORGOTTEN_AFTER):
        if event.to_state == "rolled_back" and (event.who == AUTOMATION) == by_guard:
            share = event.to_percentage if event.from_percentage is None else event.from_percentage
            # "cli: ada" is the user ada of the command line.
            place, _, person = event.who.partition(": ")
            says = f"{event.version} was rolled back by {f'{person} ({place})' if person else place}, at {share:g} % of agents."
            found[f"{event.version} {event.at:%Y-%m-%dT%H:%M:%S}"] = _sentence(f"{says} Reason: {event.why}")
    return found


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _score_without_pnl(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    """Compare mean scores and P&L of the last PERIOD with the one before. Scores by Welch's test."""
    first, middle, end = (window_of(now - periods * PERIOD) for periods in (2, 1, 0))
    before, lately = stored.scores_and_pnl(connection, first, middle), stored.scores_and_pnl(connection, middle, end)
    if min(len(before), len(lately)) < LEAST_HOURS:
        return {}
    from scipy.stats import ttest_ind

    rise = ttest_ind([score for score, _ in lately], [score for score, _ in before], equal_var=False, alternative="greater")
    scores, pnls = ([fmean(hour[place] for hour in part) for part in (before, lately)] for place in (0, 1))
    # In this form NaN, as of equal scores in every hour, says nothing either.
    if not rise.pvalue < LEVEL or pnls[1] > pnls[0]:
        return {}
    return {
        "": f"In 7 days the judge's mean score rose from {scores[0]:.2f} to {scores[1]:.2f}, but the mean P&L of an agent's hour went from "
        f"{pnls[0]:+.0f} to {pnls[1]:+.0f} dollars: agents may have learned to please the judge."
    }


def _scores_against_pnl(connection: Connection, settings: Settings, now: datetime) -> dict[str, str]:
    """Compare scores with P&L within each of the newest judged hours, as training compares agents within an hour."""
    from babylon_rl.judge.reliability.measures import mean_estimate  # numpy

    newest = recent_hours(connection, "scored_groups", NEWEST_HOURS, now)
    ranks = [rank_with_pnl(hour) for hour in hour_verdicts(connection, sorted(newest))]
    found = mean_estimate([rank for rank in ranks if rank is not None])
    if found is None or found.high is None or found.groups < LEAST_RANKED or found.high >= LEAST_RANK:
        return {}
    return {
        "": f"In the newest {found.groups} judged hours the rank correlation of the judge's scores with P&L within an hour is "
        f"{found.value:+.2f} (95 % interval up to {found.high:+.2f}; {LEAST_RANK:g} is the least): what agents are trained to do is not "
        "what earns."
    }


CAUSES = (
    Cause(
        "training_failed", "Training failed", _training_failed,
        "Correct the cause: `babylon-rl batches show BATCH` and the log of its run in Dagster have the details. Then run "
        "`babylon-rl train`: its trajectories are free for the next batch.",
    ),
    Cause(
        "readiness_blocked", "No training for a day for lack of data", _readiness_blocked,
        "Check that agents run and record. `babylon-rl ready` shows how many trajectories cannot train and why, and "
        "`babylon-rl verify-data` names the rows.",
        BLOCKED_FOR,
    ),
    Cause(
        "quality_fell", "Data quality fell", _quality_fell,
        "Check what the agents have recorded since then: `babylon-rl verify-data` names the rows and their faults.",
    ),
    Cause(
        "judge_budget_spent", "Judge budget spent", _judge_budget_spent,
        "Raise JUDGE_BUDGET_USD, choose a cheaper JUDGE_MODEL, or wait: automation judges the hours after midnight UTC.",
    ),
    Cause(
        "guard_tripped", "A guard stopped a rollout", partial(_rollbacks, by_guard=True),
        "Look at the guard that failed. Automation does not release this version again; if you disagree, "
        "`babylon-rl models deploy VERSION` does.",
    ),
    Cause(
        ROLLBACK_DONE, "A version was rolled back", partial(_rollbacks, by_guard=False),
        "`babylon-rl models` shows the version that agents get now.",
    ),
    Cause(
        "score_without_pnl", "The judge's scores rise and P&L does not", _score_without_pnl,
        "Release nothing until the cause is known: read what the agents write, and compare the judge with P&L by "
        "`babylon-rl judge report`.",
    ),
    Cause(
        "scores_against_pnl", "The judge's scores do not follow P&L", _scores_against_pnl,
        "Train and release nothing until the cause is known: `babylon-rl scores HOUR` has the judge's reasons, and "
        "`babylon-rl judge report --plots DIR` draws scores against P&L. Choose another JUDGE_MODEL, or leave out what misleads it by "
        "JUDGE_PRIVATE_FIELDS.",
    ),
)  # fmt: skip
