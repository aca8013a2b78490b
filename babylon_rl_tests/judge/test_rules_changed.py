"""A change of rule, setting, rubric or judge is free to follow where nothing is paid, and waits for a person where something is."""

from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from babylon_rl.judge import plan, scoring
from babylon_rl.judge.cost import estimate_hours
from babylon_rl.judge.plan import Change, episode_rules, find_changes, judge_rules, market_rules, rules_version
from babylon_rl.judge.prompt import templates
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.scores import by_other_rules, read_made_from, unscored_windows
from babylon_rl_tests.judge.model_judge import NOW, add_hours, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.judge.test_render import fill_market
from babylon_rl_tests.judge.test_scoring import consume
from babylon_rl_tests.rows import WINDOW, insert, make_call, make_group, make_step, make_trajectory
from babylon_rl_tests.scored import note_changes, read_hours, score_stale, score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

RUBRIC, JUDGE = "rubric", "judge"
Changed = Callable[[Settings], Settings]


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging(ScriptedJudge()) as running:
        yield running


@pytest.fixture(params=["sentiment_band_percent", "min_actions_per_trajectory", RUBRIC, JUDGE])
def change(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Changed:
    """A change of one rule: the settings after it."""

    def apply(settings: Settings) -> Settings:
        if request.param == RUBRIC:
            for module in ("judge.prompt.templates", "judge.prompt.request", "judge.plan"):
                monkeypatch.setattr(f"babylon_rl.{module}.RUBRIC_VERSION", "2")
        values = {"sentiment_band_percent": 50.0, "min_actions_per_trajectory": 3, JUDGE: "openai/another"}
        name = "judge_model" if request.param == JUDGE else request.param
        return settings if request.param == RUBRIC else settings.model_copy(update={name: values[request.param]})

    return apply


def requests(judge: Judge) -> int:
    return int(judge.stats()["requests"])


def one_hour(connection: Connection) -> str:
    """An hour whose price rose by a tenth, and whose last agent has three steps."""
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    steps = [make_step(number, calls=[make_call()]) for number in range(3)]
    insert(connection, "trajectories", [make_trajectory("few", "agent-few", minute=40, steps=steps, windowId=window)])
    return window


def test_a_paid_judge_is_not_asked_again_for_a_rule_until_somebody_says_so(
    connection: Connection, settings: Settings, judge: Judge, change: Changed
) -> None:
    window, chosen = one_hour(connection), asking(settings, judge.url)
    before = score_windows(connection, [window], chosen, NOW)[window]
    other = change(chosen)
    note_changes(connection, [window], other)
    assert unscored_windows(connection, [window]) == set(), "nothing asks for the hour"
    kept = scoring.score_windows(connection, [window], other, NOW)
    assert (kept[window].scores, kept[window].changed, kept.by_other_rules) == (before.scores, False, [window])
    assert by_other_rules(connection, window, "9999", other.judge_model, templates.judge_version(other))[0] == 1
    assert requests(judge) == 2 and estimate_hours(connection, [window], other) == []
    assert [hour.requests for hour in estimate_hours(connection, [window], other, stale=True)] == [2]
    again = scoring.score_windows(connection, [window], other, NOW, stale=True)
    assert again[window].changed and requests(judge) == 4 and again.by_other_rules == []
    assert scoring.score_windows(connection, [window], other, NOW, stale=True)[window].changed is False
    assert by_other_rules(connection, window, "9999", other.judge_model, templates.judge_version(other))[0] == 0


def test_a_late_row_is_judged_again_whatever_rule_has_changed_before(
    connection: Connection, settings: Settings, judge: Judge, change: Changed
) -> None:
    window, chosen = one_hour(connection), asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    other = change(chosen)
    note_changes(connection, [window], other)
    insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=5000.0, windowId=window)])
    note_changes(connection, [window], other)
    assert unscored_windows(connection, [window]) == {window}
    assert scoring.score_windows(connection, [window], other, NOW)[window].changed and requests(judge) == 4


def test_a_rule_is_never_followed_for_an_hour_that_a_training_has_used(
    connection: Connection, settings: Settings, judge: Judge, change: Changed
) -> None:
    insert(connection, "trajectories", make_group())
    chosen = asking(settings, judge.url)
    score_windows(connection, [WINDOW], chosen, NOW)
    consume(connection, "t0", "agent-0")
    other = change(chosen)
    note_changes(connection, [WINDOW], other)
    assert not score_stale(connection, [WINDOW], other, NOW)[WINDOW].changed and requests(judge) == 2
    assert by_other_rules(connection, WINDOW, "9999", other.judge_model, templates.judge_version(other))[0] == 0


def test_a_rule_that_changes_nothing_shown_leaves_the_scores_current(connection: Connection, settings: Settings, judge: Judge) -> None:
    window, chosen = one_hour(connection), asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    other = chosen.model_copy(update={"sentiment_band_percent": 2.0})
    note_changes(connection, [window], other)
    assert find_changes(connection, [window], other)[window][0] is Change.NOTHING
    assert score_stale(connection, [window], other, NOW).by_other_rules == [] and requests(judge) == 2


def test_credit_by_part_waits_for_a_person_with_its_price_and_back_again_nothing_differs(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    window = one_hour(connection)
    chosen = asking(settings, judge.url).model_copy(update={"credit": "hour"})
    score_windows(connection, [window], chosen, NOW)

    def noted(credit: Literal["hour", "part", "answers"]) -> tuple[Change, int, int]:
        """Change of the hour, hours by other rules, and hours with a price."""
        other = chosen.model_copy(update={"credit": credit})
        note_changes(connection, [window], other)
        assert not score_windows(connection, [window], other, NOW)[window].changed
        number, _ = by_other_rules(connection, WINDOW, "9999", other.judge_model, templates.judge_version(other))
        priced = [hour for hour in estimate_hours(connection, [window], other, stale=True) if hour.requests]
        return find_changes(connection, [window], other)[window][0], number, len(priced)

    # an hour's score is the same whether hours or answers train
    assert noted("answers") == (Change.NOTHING, 0, 0)
    assert noted("part") == (Change.RULES, 1, 1)
    assert noted("hour") == (Change.NOTHING, 0, 0)
    assert requests(judge) == 2


def test_the_heuristic_follows_its_rules_and_never_takes_the_place_of_a_paid_judge(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    window = one_hour(connection)
    assert len(score_windows(connection, [window], settings, NOW)[window].scores) == 5
    fewer = settings.model_copy(update={"min_actions_per_trajectory": 3})
    assert len(score_windows(connection, [window], fewer, NOW)[window].scores) == 6
    score_stale(connection, [window], asking(settings, judge.url), NOW)
    kept = score_windows(connection, [window], settings, NOW)
    assert kept[window].judge != "heuristic" and kept.by_other_rules == [window]
    assert score_stale(connection, [window], settings, NOW)[window].judge == "heuristic"


def test_scores_from_before_rules_were_recorded_stand_and_are_told_from_then_on(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    window, chosen = one_hour(connection), asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    # as the release before left them
    connection.execute("""UPDATE babylon_rl.group_scores SET "rulesVersion" = '' """)
    connection.execute("""UPDATE babylon_rl.market_windows SET "outcomes" = NULL""")
    assert not scoring.score_windows(connection, [window], chosen, NOW)[window].changed and requests(judge) == 2
    plan.note_changes(connection, [window], chosen)
    assert read_made_from(connection, [window])[window].rules == rules_version(chosen)
    other = chosen.model_copy(update={"sentiment_band_percent": 50.0})
    read_hours(connection, [window], other, NOW)
    plan.note_changes(connection, [window], other)
    assert scoring.score_windows(connection, [window], other, NOW).by_other_rules == [window] and requests(judge) == 2


def test_each_assets_rules_name_the_settings_that_they_read(settings: Settings) -> None:
    def of(**changes: object) -> list[str]:
        chosen = settings.model_copy(update={"judge_model": "openai/x", "openai_api_key": None} | changes)
        return [episode_rules(chosen), market_rules(chosen), judge_rules(chosen)]

    plain = of()
    for changes, place in (
        ({"min_actions_per_trajectory": 6}, 0), ({"min_agents_per_window": 6}, 0), ({"train_purposes": "action,other"}, 0),
        ({"sentiment_band_percent": 0.3}, 1), ({"judge_model": "heuristic"}, 2), ({"judge_orders": 3}, 2),
        ({"judge_group_size": 8}, 2), ({"judge_private_fields": "news"}, 2), ({"judge_request_tokens": 4000}, 2),
    ):  # fmt: skip
        assert [number for number, (before, after) in enumerate(zip(plain, of(**changes), strict=True)) if before != after] == [place]
