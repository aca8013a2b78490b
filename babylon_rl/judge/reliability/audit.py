"""Audit: a second judge scores a sample of already scored groups.

It uses the same ruler, so its answers are checked, stored and paid for like any others. It is shown the same as the judge was. Its
answers lie in the cache, where the report finds them; no score follows from them.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from babylon_rl.episodes.reading import group_version, read_windows
from babylon_rl.errors import JudgeRefused
from babylon_rl.interrupts import run_coroutine
from babylon_rl.judge.client import JudgeClient
from babylon_rl.judge.group_judge import GroupJudge, run_pool
from babylon_rl.judge.group_outcomes import GroupOutcome, ScoredGroup, UnscorableGroup
from babylon_rl.judge.judge_store import JudgeStore
from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.judge.reliability.report import ReliabilityReport, reliability_report
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store import scores
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.store.judge_report import judged_hours
from babylon_rl.windows import clock_from

AUDIT_GROUPS = 20


@dataclass
class AuditResult:
    """Result of an audit: groups with a second opinion, new answers, cached answers.

    ``changed`` groups have changed since they were judged and were left out, ``quarantined`` ones have no usable answer (window -> reason),
    ``pending`` ones wait. ``refused`` is why the second judge answers no request.
    """

    judge: str
    sampled: int
    agreed_on: int = 0
    asked: int = 0
    cached: int = 0
    changed: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    refused: str | None = None

    def add(self, outcome: GroupOutcome) -> None:
        if isinstance(outcome, ScoredGroup):
            self.agreed_on += 1
            self.asked += outcome.asked
            self.cached += len(outcome.answers) - outcome.asked
        else:
            reasons = self.quarantined if isinstance(outcome, UnscorableGroup) else self.pending
            reasons[outcome.group.window] = outcome.reason

    @property
    def sentence(self) -> str:
        parts = [f"{self.asked} answers asked for", f"{self.cached} from the cache"]
        parts += [f"{self.changed} groups have changed since they were judged"] if self.changed else []
        parts += [f"{len(self.quarantined)} without a usable answer"] if self.quarantined else []
        if self.pending:
            window, reason = next(iter(self.pending.items()))
            parts.append(f"{len(self.pending)} wait, the first {window}: {reason}")
        refused = f" It refused: {self.refused}" if self.refused else ""
        return f"{self.judge} was asked about {self.sampled} groups: {'; '.join(parts)}.{refused}"


def audit_sample(windows: Sequence[str], size: int) -> list[str]:
    """Draw the ``size`` hours with the smallest hashes, in order, so that ranges that overlap draw the same hours of the overlap."""
    return sorted(sorted(windows, key=lambda window: hashlib.sha256(f"0/{window}".encode()).digest())[:size])


def audit(
    connection: Connection,
    settings: Settings,
    windows: Sequence[str],
    now: datetime,
    *,
    groups: int = AUDIT_GROUPS,
    on_progress: Progress = no_progress,
) -> AuditResult | None:
    """Ask JUDGE_AUDIT_MODEL about a sample of the scored hours ``windows``; None without one, or where it is the judge itself.

    ``connection`` is in autocommit. Stored answers cost nothing; JUDGE_BUDGET_USD holds for the second judge too.
    """
    model = settings.judge_audit_model
    if model is None or model == settings.judge_model or groups < 1:
        return None
    sample = audit_sample(windows, groups)
    second, result = settings.model_copy(update={"judge_model": model}), AuditResult(model, len(sample))
    # the judge's own: with another, no stored answer would be found and the sample would be paid for again
    secret = keep_secret(connection, secrets.token_bytes(32), now)
    store = JudgeStore(connection, clock_from(now))

    async def groups_as_judged() -> AsyncIterator[RenderedGroup]:
        for chunk in in_parts(sample, HOURS_PLANNED_AT_ONCE):
            shown = await store.run(_as_judged, chunk, settings, secret)
            result.changed += len(chunk) - len(shown)
            for group in shown:
                yield group

    async def ask() -> None:
        async with JudgeClient(second) as client:
            judge = GroupJudge(client, secret, second, store)

            async def work(group: RenderedGroup) -> None:
                result.add(await judge.judge(group, looks=False))
                done = result.agreed_on + len(result.quarantined) + len(result.pending) + result.changed
                on_progress("second judge", done, result.sampled)

            await run_pool(groups_as_judged(), work, second.judge_concurrency)

    # a refusal ends the asking; the answers that came before it still count
    try:
        run_coroutine(ask())
    except JudgeRefused as error:
        result.refused = str(error)
    finally:
        store.close()
    return result


def _as_judged(connection: Connection, windows: Sequence[str], settings: Settings, secret: bytes) -> list[RenderedGroup]:
    """Groups as the judge was shown them, where they would be shown unchanged now.

    Only agents that have scores are shown. ``settings`` are the judge's own. The heuristic was shown nothing: its hours are shown where
    their episodes are those it judged.
    """
    with connection.transaction():
        held = scores.read(connection, windows)
        readings = read_windows(connection, list(held), settings)
        same = {window: reading for window, reading in readings.items() if held[window].input_version == group_version(reading)}
        judged = {window: {score.agent_id for score in held[window].scores} for window in same}
        shown = render_groups(connection, same, settings, agents=judged, secret=secret)
        return [group for window, group in shown.items() if held[window].shown_version in ("", group.input_version)]


def report_with_audit(
    connection: Connection,
    settings: Settings,
    span: tuple[str, str],
    now: datetime,
    *,
    judge: str | None = None,
    groups: int = AUDIT_GROUPS,
    on_progress: Progress = no_progress,
) -> tuple[ReliabilityReport, AuditResult | None]:
    """Report on the hours of ``span`` (from, to), after an audit of ``groups`` of them. See ``audit``. ``connection`` is in autocommit."""
    # the first report names the judge of the hours; after an audit it is made again, with the new answers
    report = reliability_report(connection, *span, settings, judge=judge)
    about = settings.model_copy(update={"judge_model": report.judge})
    windows = [hour.window for hour in judged_hours(connection, report.judge, *span)] if settings.judge_audit_model else []
    audited = audit(connection, about, windows, now, groups=groups, on_progress=on_progress)
    return (report if audited is None else reliability_report(connection, *span, settings, judge=judge)), audited
