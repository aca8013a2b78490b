"""Names of agents in what a judge is shown: which are masked where, for which hours, and what a change of name costs."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_windows, sync_windows
from babylon_rl.judge.cost import estimate_hours
from babylon_rl.judge.plan import Change, find_changes
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_names, known_names
from babylon_rl.store.migrate import read_migrations
from babylon_rl_tests.judge.model_judge import NOW, add_hours, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.judge.test_render import act, fill_market, text_of
from babylon_rl_tests.rows import WINDOW, insert, make_call, make_trajectory
from babylon_rl_tests.scored import score_windows

PROMPT = (
    'Balance: $1000. You may go long or short.\n{"ticker": "OPENLIE", "marketId": "241774855181560797", "yesShares": 5}\n'
    "Will it rain? A liquidity crunch: hold your balance."
)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def name(connection: Connection, agent: str, display: str, user: str | None = None) -> None:
    connection.execute('UPDATE "User" SET "displayName" = %s, username = %s WHERE id = %s', (display, user, agent))


def add_talk(connection: Connection, prompt: str, system: str = "You trade.", **action: Any) -> None:
    """Two agents who are served the same."""
    parameters = {"ticker": "OPENLIE", "side": "long", "amount": 3, **action}
    calls = [make_call(systemPrompt=system, userPrompt=prompt, response="I go long on liquidity.")]
    steps = [act(number, "TRADING_DECISION", calls=calls, parameters=parameters, reasoning="the balance allows it") for number in range(5)]
    insert(connection, "trajectories", [make_trajectory(f"t{n}", f"agent-{n}", steps=steps, minute=n) for n in (1, 2)])


def group_of(connection: Connection, settings: Settings, window: str = WINDOW) -> RenderedGroup:
    return render_groups(connection, read_windows(connection, [window], settings), settings)[window]


def everything(group: RenderedGroup) -> str:
    return "\n".join([*group.context, group.common, *(episode.text for episode in group.episodes)])


@pytest.mark.parametrize(
    "chosen",
    ["TRADING_DECISION", "long", "balance", "Balance", "OpenLIE", "Open LIE", "Will it rain?", "241774855181560797", "yesShares",
     "ticker", "liquidity", "hold your balance", "this agent", "1000", "Q7", "steps", "executed"],
)  # fmt: skip
def test_a_name_that_is_a_word_of_the_game_rewrites_nobodys_texts(connection: Connection, settings: Settings, chosen: str) -> None:
    fill_market(connection)
    add_talk(connection, PROMPT, executed=True)
    before = everything(group_of(connection, settings))
    name(connection, "agent-2", chosen)
    assert everything(group_of(connection, settings)) == before and "agent]" not in before


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["Alice", "Long Lola", "long_lola", "TRADING_DECISION 2", "Zorblax", "Hold Your Balance Inc"])
def test_a_name_that_is_nothing_but_a_name_is_masked_everywhere(connection: Connection, settings: Settings, chosen: str) -> None:
    add_talk(connection, f"{chosen}: I think {chosen.upper()} is right, says @{chosen}.", to=chosen)
    name(connection, "agent-2", chosen)
    group = group_of(connection, settings)
    assert chosen.casefold() not in everything(group).casefold()
    assert "to=[another agent]" in text_of(group, "agent-1") and "to=[this agent]" in text_of(group, "agent-2")


def test_a_name_that_is_also_a_word_is_masked_where_the_text_marks_it(connection: Connection, settings: Settings) -> None:
    posts = '[{"author": "long", "text": "do as @Long does, go long for long", "username": "long", "side": "long"}]'
    add_talk(connection, f"FEED:\n{posts}\nYou are long 40 shares.", system="You are Long, an autonomous trader.")
    name(connection, "agent-2", "Long")
    group = group_of(connection, settings)
    shown = everything(group)
    assert "author=[another agent] text=do as @[another agent] does, go long for long username=[another agent] side=long" in shown
    assert "You are [this agent], an autonomous trader." in shown and "You are long 40 shares." in shown and "side=long" in shown


def test_an_agents_own_name_is_its_own_where_another_has_it_too(connection: Connection, settings: Settings) -> None:
    add_talk(connection, "Zorblax gains.")
    for agent in ("agent-1", "agent-2"):
        name(connection, agent, "Zorblax")
    group = group_of(connection, settings)
    assert all("[this agent] gains." in episode.text for episode in group.episodes)


def test_hours_keep_the_names_of_their_time_and_later_ones_mask_the_old_name_too(connection: Connection, settings: Settings) -> None:
    first, second = add_hours(connection, 2)
    for agent in range(5):
        name(connection, f"agent-{agent}", f"Zorblax {agent}")
    sync_windows(connection, [first], settings, NOW)
    name(connection, "agent-1", "Quuxby")
    sync_windows(connection, [second], settings, NOW)
    sync_windows(connection, [first, second], settings, NOW)
    known = [(n.name, n.counts_in(first), n.counts_in(second)) for n in known_names(connection, ["agent-1"])]
    assert sorted(known) == [("Quuxby", False, True), ("Zorblax 1", True, True)]
    connection.execute("""UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'what now?', 'Quuxby was Zorblax 1.')""")
    before, after = (everything(group_of(connection, settings, window)) for window in (first, second))
    assert "Quuxby was [another agent]." in before and "[another agent] was [another agent]." in after
    assert "Zorblax 1" not in before + after and "Quuxby" not in after


def test_a_first_name_given_later_counts_from_then(connection: Connection, settings: Settings) -> None:
    first, second = add_hours(connection, 2)
    sync_windows(connection, [first], settings, NOW)
    name(connection, "agent-1", "Zorblax")
    for _ in range(2):
        sync_windows(connection, [second], settings, NOW)
        keep_names(connection, ["agent-1"])
    assert [(n.name, n.counts_in(first), n.counts_in(second)) for n in known_names(connection, ["agent-1"])] == [("Zorblax", False, True)]


def test_hours_that_were_read_before_names_were_kept_keep_those_of_the_migration(connection: Connection, settings: Settings) -> None:
    first, second = add_hours(connection, 2)
    name(connection, "agent-1", "Zorblax")
    sync_windows(connection, [first], settings, NOW)
    before = known_names(connection, ["agent-1"])
    connection.execute("DELETE FROM babylon_rl.agent_names")
    connection.execute("DO $$" + next(file.sql for file in read_migrations() if file.name == "0016_agent_names").partition("DO $$")[2])
    assert known_names(connection, ["agent-1"]) == before
    name(connection, "agent-1", "Quuxby")
    sync_windows(connection, [second], settings, NOW)
    assert [n.name for n in known_names(connection, ["agent-1"]) if n.counts_in(first)] == ["Zorblax"]


def test_a_change_of_name_costs_nothing(connection: Connection, settings: Settings, judge: Judge) -> None:
    (window,) = add_hours(connection, 1)
    chosen = asking(settings, judge.url)
    sync_windows(connection, [window], settings, NOW)
    before = score_windows(connection, [window], chosen, NOW)
    name(connection, "agent-1", "what now")  # stands in every prompt of the hour
    later = NOW + timedelta(hours=1)
    sync_windows(connection, [window], settings, later)
    assert find_changes(connection, [window], chosen)[window][0] is Change.NOTHING and estimate_hours(connection, [window], chosen) == []
    after = score_windows(connection, [window], chosen, later, force=True)
    assert after[window].scores == before[window].scores and judge.stats()["requests"] == 2, "the same bytes, from the cache"
