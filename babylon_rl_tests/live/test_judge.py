"""The judge of JUDGE_MODEL answers a group of two toy episodes as structured JSON, matched by id."""

import pytest

from babylon_rl.errors import SettingsError
from babylon_rl.settings import HEURISTIC, Settings, load_settings
from babylon_rl_tests.live.judging import BAD, GOOD, ask_judge

# Warnings of other people's libraries are not ours to mend here.
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]


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
    verdicts = ask_judge(judged)
    assert set(verdicts) == {GOOD, BAD} and all(0 <= verdict.score <= 1 for verdict in verdicts.values())
    assert verdicts[GOOD].score > verdicts[BAD].score
