"""What a registered version says of itself is the same wherever one looks, and a training that cannot be written leaves nothing."""

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.errors import TrainingPaused
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, Mandate
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import TRADER_V1, TRADER_V2, game_asked
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.prompting import version_of
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.strategies import NAMES, factory
from babylon_rl.models.checkpoints import MANIFEST, base_identity, load_manifest, model_card, recorded_names
from babylon_rl.serving.status_shapes import ModelDocument
from babylon_rl.store.batches import read_batch, read_batch_episodes
from babylon_rl.store.registry import note_tracking, read_models
from babylon_rl.training import checkpoint_checks as look
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.publishing import action_grammar, data_version, prompt_version
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.training.sample import NOW, value
from babylon_rl_tests.training.sequences import make_sequence

TRADE = {"type": "json_schema", "json_schema": {"name": "trade", "schema": {}}}


def sequence(messages: list[dict[str, str]], response_format: dict[str, Any] | None = None) -> TrainSequence:
    return make_sequence("hold", 0.0, messages=messages, response_format=response_format)


def asked(version: str, mandate: Mandate = ONE_TICK) -> list[list[dict[str, str]]]:
    """Messages of this version in a market, all that every strategy would have been asked with."""
    scenario = generate(preset("hour", seed=2))
    seats = {name: factory(name, scenario, mandate) for name in NAMES if name != "nothing"}
    run = play(scenario, seats, game=game_asked(mandate, version))
    return [call.messages for record in run.records.values() for call in record.calls.values()]


def prepared(connection, settings, **given: Any):
    batch = freeze(connection, settings, NOW, **given).batch
    prepare_batch(connection, batch.batch_id, settings, NOW)
    return batch


def test_prompt_and_grammar_are_found_in_what_was_trained_and_compared_on_load() -> None:
    own = [{"role": "system", "content": "Somebody's own prompt."}, {"role": "user", "content": "x"}]
    ours, theirs = sequence(asked(TRADER_V1)[0], TRADE), sequence(own)
    assert (prompt_version([ours]), action_grammar([ours])) == ("trader-v1", "trade")
    assert (prompt_version([theirs]), action_grammar([theirs])) == (None, "free text")
    assert prompt_version([ours, ours, ours, theirs]) == "trader-v1 (75%), not recorded (25%)"
    assert recorded_names("trader-v1 (75%), not recorded (25%)") == ["trader-v1"] and recorded_names("free text") == recorded_names(None)


@pytest.mark.parametrize(("version", "mandate"), [(TRADER_V1, ONE_TICK), (TRADER_V2, ONE_TICK), (TRADER_V2, FREE)])
def test_every_text_of_a_version_is_its_own(version, mandate) -> None:
    texts = asked(version, mandate)
    assert len(texts) > 50 and {version_of(messages) for messages in texts} == {version}


def test_a_version_is_told_by_all_of_its_text() -> None:
    posts = {len(messages[1]["content"].partition("\nPosts:\n")[2].splitlines()) - 1: messages for messages in asked(TRADER_V2)}
    (system, user), (v1_system, v1_user) = posts[2], asked(TRADER_V1)[0]
    more = user["content"].replace("\nYou: ", "\nAda: up\nYou: ")
    other_words = v1_user["content"].replace("News:", "Headlines:")
    for texts in (
        [system, {**user, "content": more}],
        [v1_system, {**v1_user, "content": other_words}],
        [v1_system, user],
        [system, v1_user],
        [system, user, user],
        [user],
        [],
    ):
        assert version_of(texts) is None


@pytest.mark.slow
def test_row_lineage_manifest_card_and_command_tell_the_same(connection, settings) -> None:
    for most in (60, None):
        batch = prepared(connection, settings, max_trajectories=most)
        trained = train_batch(connection, batch.batch_id, settings, NOW)
    model = next(m for m in read_models(connection) if m.version == trained.model.version)
    manifest = load_manifest(trained.checkpoint)
    shown, lineage = ModelDocument.of(model), trained.batch
    parents = [manifest.parent, model.parent_version, shown.parent_version, lineage.parent_version]
    assert parents == ["v1.0.11"] * 4
    assert sorted(manifest.windows) == sorted(model.windows) == sorted(shown.windows) == sorted(lineage.windows)
    card = (trained.checkpoint / "README.md").read_text()
    assert card == model_card(manifest) and "| Parent | v1.0.11 |" in card
    assert all(f"* {window}" in card for window in model.windows)
    episodes = [e for e in read_batch_episodes(connection, batch.batch_id) if e.dropped is None]
    mean = sum(e.score for e in episodes) / len(episodes)
    scores = [manifest.metrics["avgReward"], model.avg_reward, shown.avg_reward]
    assert scores == pytest.approx([mean] * 3) and f"| avgReward | {mean:.6g} |" in card
    groups = stored_scores(connection, list(manifest.windows))
    assert manifest.judge_version == "; ".join({group.judge_version for group in groups.values()}) and "heuristic, version 1" in card
    assert manifest.trajectories == sum(len(e.trajectory_ids) for e in episodes) and manifest.data_version == data_version(episodes, {})
    assert f"| Data | {manifest.data_version} |" in card and "| batch_size | 4 |" in card and f"| seed | {batch.seed} |" in card
    losses = [manifest.metrics["loss"], lineage.loss, trained.steps[-1].loss, model.eval_metrics["training"]["iterations"][-1]["loss"]]
    assert losses == pytest.approx([losses[0]] * 4)
    note_tracking(connection, batch.batch_id, "https://w/run", NOW)
    noted = next(m for m in read_models(connection) if m.version == model.version)
    assert (noted.wandb_run_id, noted.tracking_url) == (batch.batch_id, "https://w/run")


@pytest.mark.slow
def test_a_version_is_registered_while_its_hours_are_judged_again(connection, settings, read_sample) -> None:
    batch = prepared(connection, settings, max_trajectories=120)
    connection.commit()

    def train():
        with read_sample.connect(autocommit=True) as own:
            return train_batch(own, batch.batch_id, settings, NOW)

    def judge():
        with read_sample.connect(autocommit=True) as own:
            return score_windows(own, batch.windows, settings, NOW, force=True)

    rows = 'SELECT "trajectoryId" FROM public.trajectories WHERE "windowId" = ANY(%s) ORDER BY 1'
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with read_sample.connect() as held, read_sample.connect(autocommit=True) as watch, ThreadPoolExecutor() as pool:
        # Both write to the same trajectories, each in its own order: they are stopped at a row that is in the middle of either.
        ids = [trajectory for (trajectory,) in held.execute(rows, [list(batch.windows)])]
        held.execute('SELECT FROM public.trajectories WHERE "trajectoryId" = %s FOR UPDATE', [ids[len(ids) // 3]])
        judged, trained = pool.submit(judge), pool.submit(train)
        until = time.monotonic() + 20
        while watch.value(waiting) != 2 and time.monotonic() < until:
            time.sleep(0.01)
        held.rollback()
        assert trained.result(30).model.version == batch.version
        assert all(judged.result(30)[window].changed for window in batch.windows)


def test_a_finished_batch_passes_its_checks_and_each_says_what_is_wrong(connection, settings) -> None:
    batch = prepared(connection, settings, max_trajectories=60)
    train_batch(connection, batch.batch_id, settings, NOW)
    found = look.read_finished(connection, batch.batch_id)
    by_a_trainer = (look.finite, look.falling, look.trainable, look.in_bounds)
    assert look.whole(found, settings).passed and all(check(found).passed for check in (look.complete, look.spread))
    of_a_dry_run = [*(check(found) for check in by_a_trainer), look.answers(connection, found, settings)]
    assert all(not one.passed and not one.tried and one.words.startswith("Nothing measured: a dry run") for one in of_a_dry_run)
    assert "0 of" not in look.no_leakage(connection, found, settings).words and look.no_leakage(connection, found, settings).passed
    assert all("kl" not in (step.metrics or {}) for step in found.steps)
    found = replace(found, batch=replace(found.batch, backend="cpu"))
    assert [check(found).passed for check in by_a_trainer] == [True, True, True, False]
    alone = look.falling(replace(found, steps=found.steps[:1]))
    assert not alone.passed and not alone.tried and "no trend" in alone.words
    unknown = look.finite(replace(found, steps=[replace(found.steps[0], loss=None)]))
    assert not unknown.passed and not unknown.tried and "told no loss" in unknown.words
    first, *_, last = found.steps
    assert look.complete(replace(found, steps=found.steps[:-1])).numbers["missing"] == [3]
    assert not look.finite(replace(found, steps=[replace(first, loss=float("nan"))])).passed
    rose = look.falling(replace(found, steps=[last, first]))
    assert not rose.passed and "does not fall" in rose.words
    flat = [replace(episode, score=0.5) for episode in found.episodes]
    assert not look.spread(replace(found, episodes=flat)).passed
    assert not look.trainable(replace(found, steps=[replace(first, trainable_tokens=0)])).passed
    far = look.in_bounds(replace(found, steps=[replace(last, metrics={"kl": 99.0, "topActionShare": 0.5})]))
    assert not far.passed and far.tried and "99.000 nats a choice away from the base (bound 4, " in far.words
    near = {"kl": 0.5, "topActionShare": 0.5, "klParent": 0.19, "turnedShare": 0.4}
    assert look.in_bounds(replace(found, steps=[replace(last, metrics=near)])).passed
    for name, words in (("klParent", "0.700 nats a choice away from its parent"), ("turnedShare", "one action has 70% where the parent")):
        beyond = look.in_bounds(replace(found, steps=[replace(last, metrics=near | {name: 0.7})]))
        assert not beyond.passed and beyond.tried and words in beyond.words
    unmeasured = look.in_bounds(replace(found, steps=[replace(last, metrics={})]))
    assert not unmeasured.passed and not unmeasured.tried
    assert unmeasured.words == "Nothing measured: the backend cpu tells neither KL nor the shares of actions."
    half = look.in_bounds(replace(found, steps=[replace(last, metrics={"kl": 0.5})]))
    assert not half.passed and not half.tried and half.words.endswith("; not measured: topActionShare.")
    (Path(found.model.checkpoint) / MANIFEST).unlink()
    assert not look.whole(found, settings).passed


@pytest.mark.slow
def test_the_checkpoint_of_the_cpu_line_loads_and_answers_until_it_does_not(connection, cpu_settings, tiny_base) -> None:
    from transformers import AutoTokenizer

    small = cpu_settings.model_copy(update={"iterations": 1, "windows_per_iteration": 1, "learning_rate": 1e-4})
    batch = prepared(connection, small, max_trajectories=30)
    trained = train_batch(connection, batch.batch_id, small, NOW)
    manifest = load_manifest(trained.checkpoint)
    assert manifest.base == base_identity(tiny_base, trained.model.base_model)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(manifest.files)
    own, base = (AutoTokenizer.from_pretrained(directory) for directory in (trained.checkpoint, tiny_base))
    asked = [{"role": "user", "content": "Buy, sell or hold?"}]
    assert own.apply_chat_template(asked, tokenize=False) == base.apply_chat_template(asked, tokenize=False)
    assert own.get_vocab() == base.get_vocab()
    found = look.read_finished(connection, batch.batch_id)
    answered = look.answers(connection, found, small)
    assert answered.passed and "was loaded and answered" in answered.words
    # Each manifest has the values of its own generation.
    child = load_manifest(train_batch(connection, prepared(connection, small, max_trajectories=30).batch_id, small, NOW).checkpoint)
    assert [one.trainer["settings"]["entropy_bonus"] for one in (manifest, child)] == [0.05, 0.03]
    assert "stepBack" in child.metrics.keys() - manifest.metrics.keys()
    weights = trained.checkpoint / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = look.answers(connection, found, small)
    assert not damaged.passed and "is damaged" in damaged.words


@pytest.mark.slow
@pytest.mark.parametrize("saving", [False, True])
def test_a_full_disk_leaves_nothing_half_written_and_the_batch_waits(connection, cpu_settings, saving) -> None:
    small = cpu_settings.model_copy(update={"iterations": 1, "windows_per_iteration": 1, "learning_rate": 1e-4})
    batch = prepared(connection, small, max_trajectories=30)

    def fill(metrics: Any = None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[0]), pytest.raises(TrainingPaused, match="make room"):
        if not saving:  # nor is there room for the sequences
            fill()
        train_batch(connection, batch.batch_id, small, NOW, on_step=fill)
    waiting = read_batch(connection, batch.batch_id)
    assert waiting.state == "training" and "could not be written" in waiting.error
    assert value(connection, 'SELECT count(*) FROM babylon_rl.batch_items WHERE "consumed"') == 0
    assert all(model.foreign for model in read_models(connection))
    assert not list((small.home / "checkpoints").rglob("*.safetensors"))


def test_a_full_disk_while_publishing_leaves_no_version(connection, settings) -> None:
    batch = prepared(connection, settings, max_trajectories=60)

    def fill(metrics: Any) -> None:
        if metrics.iteration == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[0]), pytest.raises(TrainingPaused, match="could not be written"):
        train_batch(connection, batch.batch_id, settings, NOW, on_step=fill)
    checkpoints = settings.home / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [".work"]
    assert not list((checkpoints / ".work" / batch.batch_id).glob("publish*"))
    assert read_batch(connection, batch.batch_id).state == "uploading"
    assert all(model.foreign for model in read_models(connection))
    assert train_batch(connection, batch.batch_id, settings, NOW).batch.state == "completed"
