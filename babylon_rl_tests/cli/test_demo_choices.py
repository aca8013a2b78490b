"""Settings that a demo chose, for the commands that come after it on the same state directory."""

from pathlib import Path

import pytest

from babylon_rl.cli.demo import DEMO_SETTINGS, keep_choices, next_steps
from babylon_rl.errors import NoTrainer
from babylon_rl.setting_sources import DEMO_FILE, kept_demo_choices, setting_sources
from babylon_rl.settings import Settings, load_settings
from babylon_rl.training.backends.protocol import trainer_choice

OWN = "postgresql://somebody@127.0.0.1:1/own"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory in which a demo ran, and no settings of the developer's."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "WANDB_API_KEY", *(name.upper() for name in DEMO_SETTINGS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    keep_choices(load_settings(), DEMO_SETTINGS)
    return tmp_path / "home"


def test_what_the_demo_chose_counts_afterwards(home: Path) -> None:
    settings = load_settings()
    assert {name: getattr(settings, name) for name in DEMO_SETTINGS} == DEMO_SETTINGS
    assert trainer_choice(settings).backend in ("cpu", "gpu")
    assert {field for field, source in setting_sources(Settings).items() if source == "demo"} == set(DEMO_SETTINGS)


def test_a_key_for_tracking_buys_no_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert trainer_choice(load_settings()).backend in ("cpu", "gpu")
    monkeypatch.setenv("TRAINER", "serverless")
    assert load_settings().trainer == "serverless"


def test_the_next_steps_are_commands_of_the_place_it_was_installed_in() -> None:
    document = {"batchId": "batch-1", "modelVersion": "v1.0.0"}
    for in_clone, dev in ((True, "make dev"), (False, "babylon-rl dev")):
        lines = next_steps(document, in_clone)
        assert f"Next: {dev} " in lines[0]
        assert [(".venv" in line) for line in lines[1:]] == [in_clone] * 3


def test_settings_of_the_users_own_win(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("AUTO_PROMOTE=false\n")
    monkeypatch.setenv("KL_PENALTY", "0.1")
    settings = load_settings()
    assert (settings.auto_promote, settings.kl_penalty, settings.train_rl_local) == (False, 0.1, True)
    assert {"AUTO_PROMOTE", "KL_PENALTY"}.isdisjoint(kept_demo_choices(Settings))


def test_a_database_of_the_users_own_is_not_the_demos(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", OWN)
    assert kept_demo_choices(Settings) == {}
    with pytest.raises(NoTrainer):
        trainer_choice(load_settings())
    (home / DEMO_FILE).unlink()
    keep_choices(load_settings(), DEMO_SETTINGS)
    assert not (home / DEMO_FILE).exists()


def test_child_processes_are_given_the_choices_beside_the_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in kept_demo_choices(Settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", OWN)
    assert load_settings().train_rl_local


def test_settings_that_read_no_file_read_no_choices_of_a_demo(home: Path) -> None:
    assert load_settings().kl_penalty == 0
    assert Settings(_env_file=None).kl_penalty != 0
