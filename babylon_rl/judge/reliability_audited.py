"""Report with audit: the second judge, where set, scores a sample of the range first."""

from datetime import datetime

from babylon_rl.judge.audit import AUDIT_GROUPS, Audited, audit
from babylon_rl.judge.reliability import Reliability, reliability
from babylon_rl.progress import Progress, unheard
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_report import judged_hours


def audited_report(
    connection: Connection,
    settings: Settings,
    span: tuple[str, str],
    now: datetime,
    *,
    judge: str | None = None,
    groups: int = AUDIT_GROUPS,
    on_progress: Progress = unheard,
) -> tuple[Reliability, Audited | None]:
    """Report on the hours of ``span`` (from, to), after an audit of ``groups`` of them.

    See ``audit``. ``connection`` is in autocommit.
    """
    report = reliability(connection, *span, settings, judge=judge)
    about = settings.model_copy(update={"judge_model": report.judge})
    windows = [hour.window for hour in judged_hours(connection, report.judge, *span)] if settings.judge_audit_model else []
    audited = audit(connection, about, windows, now, groups=groups, on_progress=on_progress)
    return (report if audited is None else reliability(connection, *span, settings, judge=judge)), audited
