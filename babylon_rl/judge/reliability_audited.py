"""The report with the second judge's opinion: a sample of the range is put to it first, where there is one."""

from datetime import datetime

from babylon_rl.judge.audit import AUDIT_GROUPS, Audited, audit
from babylon_rl.judge.reliability import Reliability, reliability
from babylon_rl.progress import Progress, unheard
from babylon_rl.settings import Settings
from babylon_rl.store.judge_report import judged_hours
from babylon_rl.store.trajectories import Connection


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
    """The report on the hours of ``span`` (from, to), after ``groups`` of them were put to JUDGE_AUDIT_MODEL; see ``audit``.

    ``connection`` is in autocommit.
    """
    found = reliability(connection, *span, settings, judge=judge)
    about = settings.model_copy(update={"judge_model": found.judge})
    windows = [hour.window for hour in judged_hours(connection, found.judge, *span)] if settings.judge_audit_model else []
    audited = audit(connection, about, windows, now, groups=groups, on_progress=on_progress)
    return (found if audited is None else reliability(connection, *span, settings, judge=judge)), audited
