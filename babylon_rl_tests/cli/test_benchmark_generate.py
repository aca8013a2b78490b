"""``benchmark generate`` as a script uses it: files that are the same for the same seed, and sentences for what cannot be made."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.evaluation.snapshot_file import encode, load


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command with --json in an empty directory and give its document."""
    monkeypatch.chdir(tmp_path)

    def get(*arguments: str) -> dict[str, Any]:
        assert run(["benchmark", "generate", *arguments, "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return get


@pytest.mark.parametrize("seed", ["0", "12345", "a text", "-4"])
def test_the_same_seed_gives_the_same_bytes(made: Any, seed: str) -> None:
    one, other = made("--seed", seed, "--out", "one.json"), made("--seed", seed, "--out", "new/other.json")
    assert Path("one.json").read_bytes() == Path("new/other.json").read_bytes()
    assert one["sha256"] == other["sha256"] == sha256(Path("one.json").read_bytes()).hexdigest()
    assert str(one["seed"]) == seed and one["bytes"] == Path("one.json").stat().st_size


def test_other_seeds_give_other_markets(made: Any) -> None:
    assert len({made("--seed", str(seed), "--out", "s.json")["sha256"] for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (30, 60, 1800, 5, 3, 8, 12345)),
        (("--preset", "quick"), (30, 60, 1800, 5, 3, 8, 12345)),
        (("--preset", "hour"), (12, 300, 3600, 1, 3, 5, 12345)),
        (("--preset", "week", "--minutes", "600"), (600, 60, 36_000, 10, 5, 8, 12345)),
        (("--minutes", "10"), (10, 60, 600, 5, 3, 8, 12345)),
        (
            ("--minutes", "10", "--tick-seconds", "30", "--predictions", "2", "--perps", "1", "--agents", "3", "--seed", "9"),
            (20, 30, 600, 2, 1, 3, 9),
        ),
        (("--predictions", "0"), (30, 60, 1800, 0, 3, 8, 12345)),
    ],
)
def test_presets_and_options_say_how_much(made: Any, arguments: tuple[str, ...], expected: tuple[int, ...]) -> None:
    document = made(*arguments, "--out", "s.json.gz")
    names = ("ticks", "tickInterval", "duration", "predictionMarkets", "perpetualMarkets", "agents", "seed")
    assert tuple(document[name] for name in names) == expected
    assert document["optimalPnl"] > 0.0 and document["warnings"] == []
    snapshot = load(Path("s.json.gz"))
    assert snapshot.id == document["id"] and sha256(encode(snapshot)).hexdigest() == document["sha256"]


def test_without_a_name_the_file_is_called_after_its_id(made: Any) -> None:
    document = made()
    assert document["file"] == f"{document['id']}.json.gz" and Path(document["file"]).exists()


def test_markets_are_of_the_held_out_edition_unless_asked_otherwise(made: Any) -> None:
    made("--out", "held.json")
    made("--edition", "training", "--out", "training.json")
    tickers = [{market.ticker for market in load(Path(name)).initial_state.perpetual_markets} for name in ("held.json", "training.json")]
    assert not tickers[0] & tickers[1]


def test_the_market_begins_with_the_hour_that_is_asked_for(made: Any) -> None:
    made("--start", "2025-11-15T10:00", "--out", "s.json")
    assert load(Path("s.json")).created_at == 1_763_200_800_000


def test_people_read_what_was_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["benchmark", "generate", "--seed", "0", "--out", str(tmp_path / "s.json")]) == 0
    told = capsys.readouterr().out
    assert "seed 0, 30 ticks of 60 s, 5 prediction markets, 3 perpetuals, 8 agents" in told and "knows the market to its end earns" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "month"], "There is no preset 'month'; there are quick, week, hour"),
        (["--minutes", "0"], "minutes is 0, allowed is a positive number of whole ticks"),
        (["--minutes", "1", "--tick-seconds", "7"], "whole ticks of 7 s"),
        (["--perps", "0", "--predictions", "0"], "predictions + perps is 0"),
        (["--perps", "1000"], "perps is 1000"),
        (["--edition", "mine"], "edition is 'mine'"),
        (["--start", "noon"], "'noon' is not a window"),
        (["--start", "1950-01-01T00:00"], "start_ms is"),
    ],
)
def test_what_cannot_be_made_is_a_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert run(["benchmark", "generate", *arguments, "--out", str(tmp_path / "s.json")]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())
