"""Explanations that repeat what is hidden from the agents are found, and ordinary ones are not."""

from datetime import timedelta

import pytest

from babylon_rl.judge.hindsight import verdicts_with_leaks
from babylon_rl.judge.leakage import HiddenAnswer, leaks_hidden_answer
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.judge.model_judge import NOW, add_hours, asking
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.judge.test_render import fill_market
from babylon_rl_tests.scored import score_windows

RAIN = HiddenAnswer(("Q7", "Will it rain?"), True)
SNOW = HiddenAnswer(("market 99", "Will it snow?"), False)


@pytest.mark.parametrize(
    "explanation",
    [
        "Bought YES on Q7, which is the correct answer.",
        'It saw that "Will it rain?" resolves to yes.',
        "Good timing. Sold NO on Q7 at a loss, and NO turned out to be wrong.",
        "The answer to Will it snow? is NO, and the agent knew.",
        "Held market 99 although 'no' is right.",
    ],
)
def test_a_hidden_answer_with_its_question_is_found(explanation: str) -> None:
    assert leaks_hidden_answer(explanation, [RAIN, SNOW])


@pytest.mark.parametrize(
    "explanation",
    [
        "Bought YES on Q7 at 0.5 and kept it.",
        "Bought YES on Q77, which is the correct answer.",
        "Q7 was watched; no position was right for a small balance.",
        "Right sizing and no panic. Bought Q7.",
        "Wrong about Q7, yes, but cheap.",
        "Yes, a correct reading of OpenLIE.",
        "",
    ],
)
def test_what_says_nothing_of_the_answer_is_not(explanation: str) -> None:
    assert not leaks_hidden_answer(explanation, [RAIN, SNOW])


def test_an_hours_explanations_are_searched_for_its_own_hidden_answers(connection: Connection, settings: Settings) -> None:
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, [window], chosen, NOW)
    (fine,) = verdicts_with_leaks(connection, [window], chosen)
    assert fine.telling == []
    says = """UPDATE babylon_rl.episode_scores SET "reasoning" = %s WHERE "agentId" = %s"""
    connection.execute(says, ("Took Q7 for YES, the actual outcome.", "agent-1"))
    connection.execute(says, ("By the hidden facts a lucky guess.", "agent-3"))
    (found,) = verdicts_with_leaks(connection, [window], chosen)
    assert found.telling == ["agent-1", "agent-3"]
    (unshown,) = verdicts_with_leaks(
        connection, [window], chosen.model_copy(update={"judge_private_fields": "hidden_answers,game_knowledge"})
    )
    assert unshown.telling == ["agent-3"], "what the judge was not shown it cannot repeat"
    connection.execute(
        """UPDATE "Question" SET "resolvedOutcome" = true, status = 'resolved', "updatedAt" = %s""", (NOW - timedelta(days=4),)
    )
    (official,) = verdicts_with_leaks(connection, [window], chosen)
    assert official.telling == ["agent-3"], "an official answer is hidden no more"
