"""The judge of JUDGE_MODEL answers a group of two toy episodes as structured JSON, matched by id."""

import json

import pytest

from babylon_rl.errors import SettingsError
from babylon_rl.settings import HEURISTIC, Settings, load_settings
from babylon_rl_tests.live.judging import ask_judge, credentials

# Warnings of other people's libraries are not ours to mend here.
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
EPISODES = {
    "e-7": "08:00 OPENLIE 100.00. News: OPENLIE wins a large contract. The agent bought OPENLIE. 09:00 OPENLIE 120.00, P&L +500.00",
    "e-2": "08:00 OPENLIE 100.00. News: OPENLIE wins a large contract. The agent sold OPENLIE short. 09:00 OPENLIE 120.00, P&L -500.00",
}


@pytest.fixture
def judged() -> Settings:
    try:
        settings = load_settings()
    except SettingsError as refused:
        if "JUDGE_MODEL" not in str(refused):
            raise
        pytest.skip(str(refused).splitlines()[-1].strip())
    if settings.judge_model == HEURISTIC:
        pytest.skip("JUDGE_MODEL is not set: set it to a litellm model name, and its key, to ask it once (about 400 tokens)")
    return settings


def test_the_judge_scores_two_episodes_by_their_ids(judged: Settings) -> None:
    answer = ask_judge(judged.judge_model, credentials(judged), EPISODES)
    scores = {entry["id"]: entry["score"] for entry in json.loads(answer)["scores"]}
    assert set(scores) == set(EPISODES)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["e-7"] > scores["e-2"]
