"""The judge in the UI: the report's page, when it is made, and the checks of every scored hour."""

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from babylon_rl.automation.checks_hours import JUDGED
from babylon_rl.automation.schedules import report_judge_daily
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.hindsight import verdicts_with_leaks
from babylon_rl.judge.reliability.report import default_range, reliability_report, report_document
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.judge_report import HourVerdicts
from babylon_rl.types import EpisodeScore, GroupScores, Judgement
from babylon_rl_tests.assets.conftest import Bench
from babylon_rl_tests.judge.model_judge import MODEL, NOW, asking, filled
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.rows import WINDOW
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

ADVICE = {rule.name: rule.advice for rule in JUDGED.rules}
REPORT = "judge_report_daily"


def hour(
    scores: Sequence[float] = (0.1, 0.4, 0.6, 0.9),
    *,
    spread: float = 0.1,
    disagreement: float = 0.05,
    flags: Sequence[int] = (),
    gains: Sequence[float] = (),
    pnls_usd: Sequence[float | None] | None = None,
    trades: Sequence[int] | None = None,
    judgement: dict[str, Any] | None = None,
    **changes: Any,
) -> HourVerdicts:
    """An hour that no check has anything against: the agent a<n> traded and earned 10 * n dollars in a market that moved."""
    agents = [f"a{n}" for n in range(len(scores))]
    pnls = [10.0 * n for n in range(len(scores))] if pnls_usd is None else pnls_usd
    played = zip(agents, pnls, [1] * len(scores) if trades is None else trades, strict=True)
    facts: dict[str, Any] = {
        "orders": 2, "tau": None, "requests": 2, "prompt_tokens": 1, "completion_tokens": 1, "usd": None, "seconds": 1.0,
        "shown_version": "", "steps": 100, "shortened": 5, "decisions_shortened": 0,
    }  # fmt: skip
    entries = tuple(
        EpisodeScore(agent, score, 1, 0.0, 0.0, "", flags=("one",) * (flags[n] if flags else 0), gain=gains[n] if gains else None)
        for n, (agent, score) in enumerate(zip(agents, scores, strict=True))
    )
    group = GroupScores(WINDOW, MODEL, "1", entries, 0.5, spread, disagreement, "", judgement=Judgement(**(facts | (judgement or {}))))
    values: dict[str, Any] = {
        "window": WINDOW, "held": group if scores else None,
        "played": {agent: (pnl, traded) for agent, pnl, traded in played if pnl is not None},
        "quarantined": None, "pending": None, "mean_change": -3.0, "volatility": 1.0, "leaked": 0,
    }  # fmt: skip
    return HourVerdicts(**(values | changes))


# The check that warns, the hour, words of its sentence, and the agents that it names.
FAULTS: list[tuple[str, HourVerdicts, str, tuple[str, ...]]] = [
    (
        "groups_have_scores",
        hour((), quarantined="3 answers of x could not be used"),
        "set aside without scores (3 answers",
        (),
    ),
    ("groups_have_scores", hour((), pending="the judge is down"), "waits for its judge without scores (the judge is down)", ()),
    ("groups_have_scores", hour(pending="the judge is down"), f"waits for its judge with the scores of {MODEL} meanwhile (the judge", ()),
    ("scores_differ", hour(spread=0.0), "all scores are equal (standard deviation 0)", ()),
    ("few_ties", hour((0.2, 0.5, 0.5, 0.5, 0.5)), "6 of 10 pairs of its episodes have the same score", ()),
    ("orders_agree", hour(disagreement=0.2, judgement={"orders": 4}), "4 orders differ by 0.20 on average (at most 0.15 is fine)", ()),
    ("scores_follow_pnl", hour((0.9, 0.6, 0.4, 0.1)), "scores fall as P&L rises (rank correlation -1.00)", ()),
    (
        "holding_not_favoured",
        hour((0.9, 0.5, 0.6, 0.95), trades=[0, 1, 1, 1], pnls_usd=[0.0, 1.0, 2.0, 3.0]),
        "the market moved by 3.0 %, and in 2 of 3 pairs an agent that only held is ranked above one that traded and gained",
        ("a0",),
    ),
    (
        "steps_shown_in_full",
        hour(judgement={"shortened": 39}),
        "39 of 100 steps (39%) were not shown to the judge in full; trades among them: 0",
        (),
    ),
    (
        "steps_shown_in_full",
        hour(judgement={"shortened": 1, "decisions_shortened": 1}),
        "1 of 100 steps (1%) were not shown to the judge in full; trades among them: 1",
        (),
    ),
    ("nothing_leaks", hour(leaked=2), "2 of its sequences hold what only became known after it", ()),
    ("nothing_leaks", hour(telling=["a0"]), "1 explanations repeat what is hidden", ("a0",)),
    (
        "nobody_speaks_to_the_judge",
        hour(flags=[0, 2, 0, 1]),
        "2 of 4 episodes hold text that may speak to the judge (3 suspicions)",
        ("a1", "a3"),
    ),
    (
        "nobody_speaks_to_the_judge",
        hour(
            flags=[0, 1, 0, 0],
            gains=[-0.1, 0.42, 0.0, 0.0],
            judgement={"masked": True, "noise": 0.05, "context_flags": ("one",)},
        ),
        "(1 suspicions); 1 suspicions in what agents share; a1 gained +0.42 by it (noise 0.05): the scores with it masked count",
        ("a1",),
    ),
]
FINE = [
    hour(),
    hour((0.5, 0.5, 0.5)),
    hour((0.9, 0.5), trades=[0, 1], mean_change=0.5, volatility=None),
    hour((0.5, 0.9), trades=[0, 0]),
    hour((0.9, 0.1), trades=[0, 1], pnls_usd=[0.0, -5.0]),
    hour((0.9, 0.5, 0.1), pnls_usd=[None, None, 3.0]),
    hour((0.7,)),
    hour((0.9, 0.6, 0.3), pnls_usd=[float("nan"), float("inf"), 3.0], mean_change=float("nan"), volatility=None),
]


def found(of: HourVerdicts, settings: Settings) -> dict[str, Any]:
    looked = {rule.name: rule.look(of, settings) for rule in JUDGED.rules if rule.needs[1](of)}
    return {name: finding for name, finding in looked.items() if finding is not None}


@pytest.mark.parametrize(("check", "odd", "words", "agents"), FAULTS)
def test_a_planted_fault_is_named_by_its_check_alone(
    settings: Settings, check: str, odd: HourVerdicts, words: str, agents: tuple[str, ...]
) -> None:
    (name, finding), *others = found(odd, settings).items()
    assert (name, finding.ids) == (check, agents) and words in finding.says and not others
    assert len(ADVICE[check].format(hour=WINDOW, end=WINDOW)) > 30


@pytest.mark.parametrize("fine", FINE)
def test_nothing_is_found_in_an_hour_that_has_nothing(settings: Settings, fine: HourVerdicts) -> None:
    assert found(fine, settings) == {}


def test_every_check_has_a_planted_fault() -> None:
    assert {check for check, *_ in FAULTS} == set(ADVICE)


def test_what_the_checks_look_at_is_read_as_it_was_stored(database: Database, settings: Settings) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute(
            f"""INSERT INTO babylon_rl.group_scores ("window", "judge", "judgeVersion", "groupSize", "mean", "spread", "disagreement",
                    "inputVersion", "dataVersion", "judgedAt")
                VALUES ('{WINDOW}', 'j', '1', 2, 0.5, 0.1, 0.3, '', '', 'epoch');
                INSERT INTO babylon_rl.episode_scores
                    ("window", "agentId", "score", "rank", "advantage", "disagreement", "reasoning", "flags")
                VALUES ('{WINDOW}', 'b', 0.6, 1, 1, 0, 'The Hidden answer', '{{one,two}}'),
                    ('{WINDOW}', 'a', 0.4, 2, -1, 0, 'It has hiddenness', '{{}}');
                INSERT INTO babylon_rl.judge_quarantine VALUES ('2025-11-15T11:00', 'j', '1', 'why', '[]', 'epoch')"""
        )
        one, other = verdicts_with_leaks(connection, ["2025-11-15T11:00", WINDOW, "2025-11-15T12:00"], settings)
    assert (one.window, one.group.judge, one.group.disagreement, one.quarantined) == (WINDOW, "j", 0.3, None)
    assert [(score.agent_id, score.score, len(score.flags)) for score in one.scores] == [("a", 0.4, 0), ("b", 0.6, 2)]
    assert (one.telling, one.played, one.leaked, one.mean_change) == (["b"], {}, 0, None)
    assert (other.held, other.quarantined, other.scores) == (None, "why", [])


@pytest.mark.slow
def test_a_share_of_hours_in_quarantine_beyond_the_threshold_is_warned_of(make_bench: Callable[..., Bench], database: Database) -> None:
    windows = filled(database, 9)
    changes = {"judge_model": MODEL, "judge_base_url": "http://127.0.0.1:9/v1"}
    bench = make_bench(database, NOW, **changes)

    def checked() -> dg.AssetCheckEvaluation:
        result = bench.run(REPORT)
        return next(found for found in result.get_asset_check_evaluations() if found.check_name == "few_in_quarantine")

    unmeasured = checked()
    assert not unmeasured.passed and (unmeasured.description or "").startswith("Nothing measured: ")
    bench.execute(
        """INSERT INTO babylon_rl.group_scores ("window", "judge", "judgeVersion", "groupSize", "mean", "spread", "disagreement",
               "inputVersion", "dataVersion", "judgedAt") SELECT w, %s, '1', 2, 0.5, 0.1, 0.3, '', '', 'epoch' FROM unnest(%s::text[]) w""",
        MODEL, windows,
    )  # fmt: skip
    aside = """INSERT INTO babylon_rl.judge_quarantine VALUES (%s, %s, '1', 'why', '[]', 'epoch')"""
    bench.execute(aside, "2025-11-16T00:00", MODEL)
    assert checked().passed and checked().metadata["quarantined_share"].value == 0.1
    bench.execute(aside, "2025-11-16T01:00", MODEL)
    found = checked()
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description is not None and "2 of 11 hours" in found.description and "in quarantine (18%)" in found.description


@pytest.mark.long
@pytest.mark.parametrize("planted", [0.0, 0.5])
def test_a_judge_that_favours_long_transcripts_is_warned_of(make_bench: Callable[..., Bench], database: Database, planted: float) -> None:
    windows = filled(database, 12, 6, wordy=True)
    with judging(ScriptedJudge(noise=0.03, length_bias=planted)) as judge:
        bench = make_bench(database, NOW, judge_model=MODEL, judge_base_url=judge.url, judge_disagreement=1.0)
        unmeasured = _length_check(bench)
        with database.connect(autocommit=True) as connection:
            sync_windows(connection, windows, bench.babylon.settings, NOW)
            score_windows(connection, windows, bench.babylon.settings, NOW)
        found = _length_check(bench)
    assert not unmeasured.passed and (unmeasured.description or "").startswith("Nothing measured")
    assert (found.passed, found.severity) == (planted == 0, dg.AssetCheckSeverity.WARN)
    assert f"{MODEL} gives the longest transcript" in (found.description or "")


def _length_check(bench: Bench) -> dg.AssetCheckEvaluation:
    checks = bench.run(REPORT).get_asset_check_evaluations()
    return next(found for found in checks if found.check_name == "length_earns_nothing")


@pytest.mark.slow
def test_checks_of_a_range_speak_of_every_hour(make_bench: Callable[..., Bench], database: Database) -> None:
    windows = filled(database, 4)
    bench = make_bench(database, now=NOW)
    bench.execute("""UPDATE trajectories SET "finalPnL" = 7 WHERE "trajectoryId" = ANY(%s)""", [f"t1-{n}" for n in range(4)])
    verdicts = bench.verdicts("hours", windows[0], windows[-1])
    ties = verdicts["few_ties"]
    assert not ties.passed and (ties.description or "").startswith(f"1 of 4 hours: {windows[1]}, ")
    assert verdicts["groups_have_scores"].passed and verdicts["groups_have_scores"].description == "Nothing found in 4 hours."
    by_model = {"orders_agree", "steps_shown_in_full", "nobody_speaks_to_the_judge"}
    unmeasured = {name for name, verdict in verdicts.items() if verdict.description and "scores by a language model" in verdict.description}
    assert unmeasured == by_model and not any(verdicts[name].passed for name in by_model)


@pytest.mark.long
def test_the_page_has_numbers_table_and_pictures_and_a_day_without_judging_makes_none(
    make_bench: Callable[..., Bench], database: Database, settings: Settings
) -> None:
    windows = filled(database, 3)
    with judging() as judge:
        chosen = asking(settings, judge.url, judge_audit_model="openai/second")
        changes = {name: getattr(chosen, name) for name in ("judge_model", "judge_base_url", "judge_audit_model", "judge_timeout_seconds")}
        bench = make_bench(database, now=NOW, **changes)
        assert isinstance(tick(bench), dg.SkipReason)
        bench.run("hours", windows[0], windows[-1])
        assert isinstance(tick(bench), dg.RunRequest)
        assert bench.run(REPORT).success
        asked = judge.stats()["requests"]
        assert bench.run(REPORT).success and judge.stats()["requests"] == asked == 12
    first, second = bench.instance.fetch_materializations(dg.AssetKey("judge_report"), limit=2).records
    made = first.asset_materialization
    assert made is not None and second.asset_materialization is not None and made.tags is not None and second.asset_materialization.tags
    version = "dagster/data_version"
    assert made.tags[version] == second.asset_materialization.tags[version]
    metadata = made.metadata
    assert (metadata["dagster/row_count"].value, metadata["judge"].value, metadata["pnl_correlation"].value) == (3, MODEL, pytest.approx(1))
    assert metadata["second_judge_correlation"].value == pytest.approx(1) and metadata["orders_differ_by"].value == pytest.approx(0)
    assert set(re.findall(r"!\[(\w+)\]\(data:image/png", metadata["pictures"].value)) == {"position", "agreement", "pnl", "cost"}
    assert [record.data["measured"] for record in metadata["report"].records][:2] == ["groups", "orders differ by"]  # type: ignore[attr-defined]
    later = make_bench(database, now=NOW + timedelta(days=2))
    assert isinstance(tick(later), dg.SkipReason)


@pytest.mark.slow
def test_the_page_is_of_the_newest_data_and_says_what_the_command_says(make_bench: Callable[..., Bench], database: Database) -> None:
    windows = filled(database, 3)
    bench = make_bench(database, now=NOW)
    bench.run("hours", windows[0], windows[-1])
    later = make_bench(database, now=NOW + timedelta(days=600))
    assert later.run(REPORT).success
    with database.connect(autocommit=True) as connection:
        span = default_range(connection)
        assert span is not None
        command = report_document(reliability_report(connection, *span, later.babylon.settings))
    (made,) = later.instance.fetch_materializations(dg.AssetKey("judge_report"), limit=1).records
    assert made.asset_materialization is not None
    assert made.asset_materialization.metadata["document"].value == command and command["groups"] == 3


def tick(bench: Bench) -> Any:
    """What the schedule does now."""
    context = dg.build_schedule_context(instance=bench.instance, resources={"babylon": bench.babylon})
    return report_judge_daily(context)
