"""The command ``worker`` refuses what it cannot do, before anything starts."""

import pytest

from babylon_rl.cli import run


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--queue", "gpu"], {}, "gpu is not a queue. Choose from hours, trainer, trainer-gpu, evidence."),
        ([], {}, "CELERY_BROKER_URL is not set"),
        ([], {"CELERY_BROKER_URL": "redis://127.0.0.1/0"}, "DATABASE_URL is not set: workers share a server of your own"),
    ],
)
def test_a_worker_without_what_it_needs_is_refused_with_a_sentence(
    arguments: list[str], settings: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("CELERY_BROKER_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert run(["worker", *arguments]) == 2
    assert sentence in capsys.readouterr().err
