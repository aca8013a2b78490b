import re

import pytest
from pydantic import SecretStr

from babylon_rl.errors import TrainingError
from babylon_rl.services import service_in_use
from babylon_rl.store.registry import next_version, read_models, version_order
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import choose_trainer, trainer_choice
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import fewer_iterations, iterations_of, plan_iterations
from babylon_rl.versions import seeded_share
from babylon_rl_tests.training.sample import NOW


def add_model(connection, version, base="other", day=1):
    connection.execute(
        'INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", "createdAt", "updatedAt")'
        " VALUES (%s, %s, %s, %s, 'x', %s, %s)",
        [version, f"babylon-agent-{version}", version, base, NOW.replace(day=day), NOW],
    )


def test_the_first_version_is_v1_0_0(database):
    with database.connect() as connection:
        assert next_version(connection) == "v1.0.0"


def test_the_next_version_is_the_highest_plus_a_patch_whenever_it_was_made(database):
    with database.connect() as connection:
        for day, version in enumerate(["v2.3.99", "v2.3.9", "v1.99.0", "latest", "v2.4.0-rc1"], start=1):
            add_model(connection, version, day=day)
        assert next_version(connection) == "v2.3.100"
        assert [model.version for model in read_models(connection)][:3] == ["v2.3.99", "v2.3.9", "v1.99.0"]


def test_the_recorded_games_registry_is_foreign_and_goes_on_with_v1_0_11(connection):
    assert next_version(connection) == "v1.0.11"
    assert [(model.version, model.foreign) for model in read_models(connection)] == [("v1.0.10", True), ("v1.0.9", True)]


@pytest.mark.parametrize(
    ("version", "order"),
    [
        ("v1.2.3", (1, 2, 3)), ("1.2.3", (1, 2, 3)), ("v1.2", None), ("v01.2.3", None), ("v1.2.3-rc", None), ("", None), ("v١.2.3", None),
        ("v999999999.0.0", (999_999_999, 0, 0)), ("v1000000000.0.0", None), ("v99999999999999999999.0.0", None), ("v1.0.4294967296", None),
    ],
)  # fmt: skip
def test_only_semantic_versions_have_an_order(version, order):
    assert version_order(version) == order


WINDOWS = [f"2025-10-29T{hour:02}:00" for hour in range(7)]


@pytest.mark.parametrize(
    ("iterations", "passes", "sizes"), [(10, 1, [3, 3, 1]), (10, 2, [3, 3, 1] * 2), (4, 2, [3, 3, 1, 3]), (2, 1, [3, 3])]
)
def test_hours_are_gone_through_as_often_as_passes_ask_and_no_oftener(settings, iterations, passes, sizes):
    few = settings.model_copy(update={"iterations": iterations, "windows_per_iteration": 3})
    plan = plan_iterations(WINDOWS, few, 1, passes)
    assert [len(some) for some in plan] == sizes
    seen = [window for some in plan for window in some]
    assert len(set(seen[: len(WINDOWS)])) == min(len(WINDOWS), len(seen)) and set(seen) <= set(WINDOWS)
    assert plan == plan_iterations(WINDOWS, few, 1, passes) != plan_iterations(WINDOWS, few, 2, passes)


def test_fewer_iterations_than_asked_for_are_explained_with_the_way_to_get_them(read_sample, settings):
    few = settings.model_copy(update={"iterations": 10, "epochs": 1, "windows_per_iteration": 20})
    with read_sample.connect(autocommit=True) as connection:
        batch = freeze(connection, few, NOW, max_trajectories=200).batch
        said = fewer_iterations(batch)
        assert said is not None and said.startswith("1 of 10 iterations: an iteration takes up to 20 hours (WINDOWS_PER_ITERATION), ")
        assert f"{batch.batch_id} has {len(batch.windows)}, and each trains once (EPOCHS)" in said
        epochs = int(re.search(r"`--epochs (\d+)`", said)[1])
        whole = freeze(connection, few.model_copy(update={"epochs": epochs}), NOW, max_trajectories=200).batch
    assert iterations_of(whole) == 10 and fewer_iterations(whole) is None


def test_seeded_shares_are_uniform_and_fixed():
    shares = [seeded_share(7, str(number)) for number in range(1000)]
    assert shares == [seeded_share(7, str(number)) for number in range(1000)]
    assert min(shares) >= 0 and max(shares) < 1 and sum(shares) / 1000 == pytest.approx(0.5, abs=0.03)


def test_the_settings_choose_the_trainer(settings):
    assert isinstance(choose_trainer(settings), DryTrainer)
    assert trainer_choice(settings.model_copy(update={"local_base_model": None})).backend == "cpu"
    with pytest.raises(TrainingError, match="Set TRAIN_RL_LOCAL=true"):
        trainer_choice(settings.model_copy(update={"train_rl_local": False}))


@pytest.mark.parametrize(
    ("given", "backend"),
    [
        ({"trainer": "local"}, "dry"),
        ({"trainer": "local", "local_base_model": None}, "cpu"),
        ({"trainer": "cpu", "local_base_model": "a/base"}, "cpu"),
        ({"trainer": "dry", "local_base_model": None}, "dry"),
        ({"trainer": "gpu", "local_base_model": None}, "gpu"),
        ({"trainer": "serverless"}, "serverless"),
        ({}, "serverless"),
    ],
)
def test_with_a_key_for_tracking_the_trainer_is_the_one_that_is_named(settings, given, backend):
    tracked = settings.model_copy(update={"wandb_api_key": SecretStr("k"), "train_rl_local": False} | given)
    assert trainer_choice(tracked).backend == backend
    assert (service_in_use(tracked) is None) == (given.get("trainer") not in (None, "serverless"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"trainer": "serverless"}, "TRAINER is serverless, and WANDB_API_KEY is not set. Set it, or TRAINER=local"),
        ({"trainer": "cpu"}, "TRAINER is cpu and LOCAL_BASE_MODEL is dry"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused_in_a_sentence(settings, given, sentence):
    with pytest.raises(TrainingError, match=sentence):
        trainer_choice(settings.model_copy(update=given))
