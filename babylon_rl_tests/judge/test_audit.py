"""A second judge is asked about the same sample each time, once, about what the judge was shown, and within the budget."""

from collections.abc import Iterator

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.reliability.audit import audit, audit_sample
from babylon_rl.judge.reliability.report import reliability_report, report_document
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.judge.model_judge import MODEL, NOW, PRICED, add_hours, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.judge.test_reliability import SPAN
from babylon_rl_tests.judge.test_render import fill_market
from babylon_rl_tests.scored import read_hours, score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

SECOND = "openai/second"


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def scored(connection: Connection, settings: Settings, hours: int, agents: int = 5) -> list[str]:
    windows = add_hours(connection, hours, agents)
    sync_windows(connection, windows, settings, NOW)
    assert len(score_windows(connection, windows, settings, NOW)) == hours
    return windows


def requests(judge: Judge) -> int:
    return int(judge.stats()["requests"])


def test_ranges_that_overlap_draw_the_same_hours() -> None:
    windows = [f"2025-11-{day:02}T{hour:02}:00" for day in range(1, 11) for hour in range(24)]
    whole = audit_sample(windows, 40)
    assert len(whole) == 40 and whole == sorted(whole) == audit_sample(windows[::-1], 40)
    later = audit_sample(windows[24:], 40)
    assert set(whole) & set(windows[24:]) <= set(later)
    assert audit_sample(windows[:3], 40) == windows[:3]


@pytest.mark.slow
def test_a_second_judge_that_thinks_alike_agrees_and_is_paid_once(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url, judge_audit_model=SECOND)
    windows = scored(connection, chosen, 4)
    before = requests(judge)
    found = audit(connection, chosen, windows, NOW, groups=3)
    assert found is not None and (found.judge, found.sampled, found.agreed_on, found.asked, found.cached) == (SECOND, 3, 3, 6, 0)
    assert requests(judge) == before + 6
    again = audit(connection, chosen, windows, NOW, groups=3)
    assert again is not None and (again.asked, again.cached) == (0, 6) and requests(judge) == before + 6
    agreement = report_document(reliability_report(connection, *SPAN, chosen))["auditAgreement"]
    assert (agreement["judge"], agreement["groups"], agreement["spearman"]["mean"]) == (SECOND, 3, pytest.approx(1))
    assert (agreement["kendallTau"]["mean"], agreement["meanAbsoluteDifference"]["mean"]) == pytest.approx((1, 0))
    judges = connection.execute('SELECT DISTINCT "judge" FROM babylon_rl.group_scores').fetchall()
    assert judges == [(MODEL,)], "its opinion is nobody's score"


@pytest.mark.slow
def test_one_that_thinks_otherwise_is_seen(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url, judge_audit_model=SECOND)
    windows = scored(connection, chosen, 6)
    before = requests(judge)
    with judging(ScriptedJudge(seed=3, skill="text")) as other:
        chosen = chosen.model_copy(update={"judge_base_url": other.url})
        audit(connection, chosen, windows, NOW)
        assert (requests(other), requests(judge)) == (12, before), "it is asked at its own address, and nobody else is"
    found = reliability_report(connection, *SPAN, chosen).audit
    assert found is not None and found.spearman is not None and found.difference is not None
    assert found.groups == 6 and found.spearman.value < 0.6 and found.difference.value > 0.15


def test_a_group_in_parts_is_put_on_one_scale_for_the_second_judge_too(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url, judge_audit_model=SECOND, judge_group_size=6)
    windows = scored(connection, chosen, 1, agents=9)
    found = audit(connection, chosen, windows, NOW)
    assert found is not None and found.asked == 4
    agreement = reliability_report(connection, *SPAN, chosen).audit
    assert agreement is not None and agreement.spearman is not None
    assert (agreement.groups, agreement.spearman.value) == (1, pytest.approx(1))


def test_nobody_is_asked_without_a_second_judge(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url)
    windows = scored(connection, chosen, 1)
    before = requests(judge)
    assert audit(connection, chosen, windows, NOW) is None
    itself = chosen.model_copy(update={"judge_audit_model": MODEL})
    assert audit(connection, itself, windows, NOW) is None and reliability_report(connection, *SPAN, itself).audit is None
    second = chosen.model_copy(update={"judge_audit_model": SECOND})
    assert audit(connection, second, windows, NOW, groups=0) is None and requests(judge) == before
    unasked = reliability_report(connection, *SPAN, second).audit
    assert unasked is not None and (unasked.groups, unasked.spearman) == (0, None)


@pytest.mark.long
def test_the_budget_holds_for_the_second_judge_and_what_it_refuses_is_said(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    chosen = asking(settings, judge.url, judge_audit_model=PRICED)
    windows = scored(connection, chosen, 2)
    before = requests(judge)
    poor = audit(connection, chosen.model_copy(update={"judge_budget_usd": 0.0}), windows, NOW)
    assert poor is not None and sorted(poor.pending) == windows and requests(judge) == before
    assert "JUDGE_BUDGET_USD" in poor.sentence and poor.refused is None
    judge.reset(faults={"bad-key": 1.0})
    refused = audit(connection, chosen, windows, NOW)
    assert refused is not None and refused.refused is not None and "It refused: " in refused.sentence
    judge.reset(faults={"empty": 1.0})
    silent = audit(connection, chosen, windows, NOW)
    assert silent is not None and sorted(silent.quarantined) == windows and "2 without a usable answer" in silent.sentence
    assert connection.execute("SELECT count(*) FROM babylon_rl.judge_quarantine").fetchone() == (0,)


def test_an_hour_that_changed_since_it_was_judged_is_left_out(connection: Connection, settings: Settings, judge: Judge) -> None:
    chosen = asking(settings, judge.url, judge_audit_model=SECOND)
    windows = scored(connection, chosen, 2)
    connection.execute("""UPDATE trajectories SET "finalPnL" = 999 WHERE "trajectoryId" = 't1-0'""")
    found = audit(connection, chosen, windows, NOW)
    assert found is not None and (found.agreed_on, found.changed) == (1, 1) and "1 groups have changed" in found.sentence


def test_opinions_are_compared_on_the_same_content(connection: Connection, settings: Settings, judge: Judge) -> None:
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    chosen = asking(settings, judge.url, judge_audit_model=SECOND)
    score_windows(connection, [window], chosen, NOW)
    answer = """UPDATE "Question" SET "resolvedOutcome" = true, status = 'resolved', "updatedAt" = now()::timestamp"""
    connection.execute(answer)
    read_hours(connection, [window], chosen, NOW)
    before = requests(judge)
    late = audit(connection, chosen, [window], NOW)
    assert late is not None and (late.changed, late.agreed_on, requests(judge)) == (1, 0, before), "the judge did not know that answer"
    assert score_windows(connection, [window], chosen, NOW)[window].changed
    audit(connection, chosen, [window], NOW)
    agreed = reliability_report(connection, *SPAN, chosen).audit
    assert agreed is not None and agreed.groups == 1
    connection.execute("""UPDATE "Question" SET "resolvedOutcome" = false""")
    assert score_windows(connection, [window], chosen, NOW)[window].changed
    outdated = reliability_report(connection, *SPAN, chosen).audit
    assert outdated is not None and outdated.groups == 0, "what the second judge said was about other content"
