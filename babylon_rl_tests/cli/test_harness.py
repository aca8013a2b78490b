"""The harness as a script uses it: what it plays, records and trains, and how it ends when nothing was learned from."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from babylon_rl.cli import run
from babylon_rl.errors import CheckpointError
from babylon_rl.evaluation.harness import answer_of, harness_players, learning_faults, published_faults
from babylon_rl.models.checkpoints import WEIGHTS, base_identity, publish
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import BatchGroup
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl_tests.cli.test_data import Ask, asker
from babylon_rl_tests.evaluation.runs import small_markets
from babylon_rl_tests.training.weights_and_biases import weights_and_biases

MARKETS = ("--snapshot", "preset:quick:minutes=12:predictions=2:perps=2:seeds=1-2")
STRATEGIES = ["conservative", "balanced", "aggressive", "momentum", "contrarian"]
ENOUGH = {"TRAINING_MIN_TRAJECTORIES": "100", "TRAINING_MIN_GROUPS": "2", "TRAINING_MIN_GROUP_SIZE": "5", "ITERATIONS": "1"}


@pytest.fixture
def ask(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Run a command with --json on a migrated, empty database, with the dry trainer, and give its document."""
    for name, value in {"TRAIN_RL_LOCAL": "true", "LOCAL_BASE_MODEL": "dry", **ENOUGH}.items():
        monkeypatch.setenv(name, value)
    return asker(database, monkeypatch, capsys, tmp_path)


@pytest.mark.slow
def test_agents_play_and_are_recorded_as_evaluation_which_changes_no_readiness(ask: Ask, database: Database, tmp_path: Path) -> None:
    document = ask("harness", *MARKETS, "--agents", "6", "--report", str(tmp_path / "page"))
    assert [row["agent"] for row in document["agents"]] == [*STRATEGIES, "conservative-2"]
    assert (len(document["runs"]), document["recorded"], document["model"], document["training"]) == (12, 12, None, None)
    assert document["before"] == document["after"] and document["before"]["reason"] == "Need 100 more trajectories"
    with database.connect() as connection:
        rows = connection.execute('SELECT "scenarioId", "isEvaluation", "isTrainingData" FROM trajectories').fetchall()
    assert {row[0] for row in rows} == {f"benchmark-{one['benchmarkId']}" for one in document["runs"]}
    assert {row[1:] for row in rows} == {(True, False)} and (tmp_path / "page" / "index.html").exists()
    again = ask("harness", *MARKETS, "--agents", "6")
    assert again["recorded"] == 0 and again["agents"] == document["agents"]


@pytest.mark.long
def test_training_plays_what_readiness_lacks_and_ends_with_a_version_that_loads(ask: Ask) -> None:
    document = ask("harness", *MARKETS, "--train", code=1)
    training = document["training"]
    assert len(training["hours"]) == 2 and training["ready"]["ready"]
    assert [fault for fault in document["faults"] if not fault.startswith("Nothing was learned: the dry trainer trains nothing.")] == []
    assert training["ready"]["stats"]["totalTrajectories"] == 120 and document["before"]["stats"]["totalTrajectories"] == 0
    assert document["after"]["reason"] == "Need 100 more trajectories"
    assert document["model"]["version"] == training["modelVersion"] == "v1.0.0"
    assert sorted(document["model"]["windows"]) == training["hours"]
    again = ask("harness", *MARKETS, "--train", "--seed", "1", code=1)
    assert not set(again["training"]["hours"]) & set(training["hours"])
    assert again["model"]["version"] == "v1.0.1" and again["model"]["parent"] == "v1.0.0"


@pytest.mark.long
def test_the_artifact_of_a_training_is_fetched_and_compared_with_the_checkpoint(
    ask: Ask, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with weights_and_biases() as service:
        key = "0123456789abcdef0123456789abcdef01234567"
        for name, value in {"TRAINER": "local", "WANDB_API_KEY": key, "WANDB_PROJECT": "p", "WANDB_BASE_URL": service.url}.items():
            monkeypatch.setenv(name, value)
        service.corrupted = {"adapter_config.json"}
        document = ask("harness", *MARKETS, "--train", "--force", "--windows", "1", code=1)
        checkpoint = Path(document["training"]["checkpoint"])
        name = document["training"]["artifact"]
        assert name == "me/p/babylon-agent-v1.0.0:v1.0.0"
        assert document["faults"][-1] == f"The artifact {name} is not the checkpoint {checkpoint}; different files: adapter_config.json."
        with database.connect() as connection:
            (model,) = read_models(connection)
        service.corrupted = set()
        assert published_faults(model, checkpoint, load_settings()) == []
        service.refused = {"ArtifactMembershipByName"}
        (fault,) = published_faults(model, checkpoint, load_settings())
        assert fault.startswith(f"The artifact {name} cannot be fetched: ") and "storage of this account" in fault
        none = replace(model, wandb_artifact_id=None, tracking_refusal="Not sent to Weights & Biases: 401.")
        assert published_faults(none, checkpoint, load_settings()) == [
            "The training published no artifact. Not sent to Weights & Biases: 401."
        ]


@pytest.mark.long
def test_without_force_it_does_not_train_on_too_little_and_says_so(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["harness", *MARKETS, "--train", "--windows", "1"]
    assert run([*short, "--json"]) == 1
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["model"] is None and document["after"]["stats"]["totalTrajectories"] == 60
    assert "Not trained: Need 40 more trajectories" in shown.err and "--force" in document["faults"][0]
    assert run([*short, "--force"]) == 1  # a dry run learns nothing
    out = capsys.readouterr().out
    for promised in (
        "simultaneous agents",
        "Iteration 1/1",
        "hours played: 1",
        "v1.0.0 (ready), from dry",
        "a dry run makes checkpoints",
    ):
        assert promised in out


@pytest.mark.long
def test_nothing_to_learn_from_is_a_failed_check(ask: Ask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "6")
    assert run(["harness", *MARKETS, "--train", "--force", "--windows", "1", "--json"]) == 1
    shown = capsys.readouterr()
    assert "freezable trajectories" in shown.err and json.loads(shown.out)["model"] is None


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        (["--agents", "4"], {}, 2, "'--agents'"),
        (["--force"], {}, 2, "belong to --train"),
        (["--snapshot", "no-such-file.json"], {}, 3, "no-such-file.json"),
        (["--train"], {"TRAIN_RL_LOCAL": "false"}, 2, "TRAIN_RL_LOCAL=true"),
        (["--train", "--start", "2999-01-01T00:00", *MARKETS], {}, 2, "is not over yet"),
    ],
)
def test_bad_input_is_a_sentence_and_an_exit_code(
    ask: Ask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], variables: dict[str, str],
    code: int, said: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["harness", *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_market_in_which_nothing_can_be_earned_ranks_nobody(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    # a single tick of a single stock: whoever trades is too few ticks from any news to have traded
    assert run(["harness", "--snapshot", "preset:quick:minutes=1:predictions=0:perps=1:seeds=5"]) == 1
    assert "ranks nobody" in capsys.readouterr().err


def test_agents_of_the_second_round_are_others_under_another_name() -> None:
    players = harness_players(11)
    assert [one.name for one in players[4:]] == ["contrarian", *(f"{name}-2" for name in STRATEGIES), "conservative-3"]
    assert len({one.identity for one in players}) == 11


def make_group(lowest: float, highest: float) -> BatchGroup:
    return BatchGroup("2025-11-15T10:00", 5, 5, lowest, highest, 0.5, "a", highest, 0.0, "heuristic", None)


def test_a_dry_run_has_learned_nothing() -> None:
    step = TrainingStep(1, 1, "dry", 0, [], 5, datetime(2025, 1, 1), None, None, 0.5, 10, {})
    assert "the dry trainer trains nothing" in learning_faults([make_group(0.2, 0.7)], [step])[0]
    assert learning_faults([make_group(0.2, 0.7)], [replace(step, backend="cpu")]) == []


def test_scores_that_are_all_the_same_and_no_tokens_are_faults() -> None:
    faults = learning_faults([make_group(0.5, 0.5)], [])
    assert "every agent has the same (0.500)" in faults[0] and "No token carried a gradient" in faults[1]
    assert len(learning_faults([make_group(0.5, 0.5), make_group(0.2, 0.7)], [])) == 1


@pytest.mark.long
def test_a_checkpoint_is_served_again_and_asked_unless_it_is_damaged(settings: Settings, tmp_path: Path) -> None:
    from babylon_rl_tests.tiny_model import make_adapter, make_base, make_manifest

    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))  # prompts in single bytes are long
    made, checkpoint = make_adapter(base, tmp_path / ".making"), tmp_path / "checkpoints" / "v1.0.0"
    publish(made, checkpoint, make_manifest(base_identity(base, "tiny")))
    chosen = settings.model_copy(update={"local_base_model": str(base)})
    scenario = small_markets(1)[0].scenario
    answer = answer_of(checkpoint, "v1.0.0", "tiny", scenario, chosen)
    assert answer is not None and "action" in json.loads(answer)
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:-1] + b"x")
    for base_model in ("tiny", "dry"):
        with pytest.raises(CheckpointError, match="is damaged"):
            answer_of(checkpoint, "v1.0.0", base_model, scenario, chosen)
