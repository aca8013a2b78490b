"""Conversion takes the frozen trajectories' calls, whole and in order, whatever else their hours hold."""

import tracemalloc
from dataclasses import replace

import pytest
from msgspec import structs

from babylon_rl.episodes.reading import read_window
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.training.backends.protocol import TrainPlan
from babylon_rl.training.conversion import convert, preflight_document
from babylon_rl.windows import HOUR
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.rows import START, insert, make_call, make_step, make_trajectory

HOURS = ("2025-10-29T14:00", "2025-10-29T13:00")


def episodes_of(connection, settings):
    """Every episode of two hours, as a batch would hold them, newest hour first."""
    return [
        BatchEpisode(hour, episode.agent_id, episode.trajectory_ids, 0.5, 1, 1.5, None, None)
        for hour in HOURS
        for episode in read_window(connection, hour, settings).episodes
    ]


def test_every_call_of_an_episode_comes_in_its_order(connection, settings):
    found = convert(connection, episodes_of(connection, settings), settings)
    for hour in HOURS:
        served = read_window(connection, hour, settings).episodes
        expected = [(e.agent_id, call.trajectory_id, call.call_id, call.response) for e in served for call in e.sequences]
        assert expected and expected == [(s.agent_id, s.trajectory_id, s.call_id, s.response) for s in found.by_window[hour]]
        assert {e.agent_id: len(e.sequences) for e in served} == {
            agent: n for (window, agent), n in found.per_episode.items() if window == hour
        }
    assert [sequence.window for sequence in found.sequences] == sorted((s.window for s in found.sequences), reverse=True)
    assert {sequence.advantage for sequence in found.sequences} == {1.5}


def test_what_was_not_frozen_is_not_taken(connection, settings):
    episodes = episodes_of(connection, settings)
    called = {sequence.trajectory_id for sequence in convert(connection, episodes, settings).sequences}
    whole = next(e for e in episodes if len(called.intersection(e.trajectory_ids)) > 1)
    kept = next(i for i in whole.trajectory_ids if i in called)
    found = convert(connection, [replace(whole, trajectory_ids=(kept,))], settings)
    assert {sequence.trajectory_id for sequence in found.sequences} == {kept}


def test_the_order_of_the_hours_changes_nothing(connection, settings):
    episodes = episodes_of(connection, settings)
    one, other = (convert(connection, given, settings) for given in (episodes, sorted(episodes, key=lambda e: e.window)))
    assert list(one.sequences) == list(other.sequences)


def test_a_trajectory_that_is_gone_is_missing_from_its_episode(connection, settings):
    episodes = episodes_of(connection, settings)
    gone = convert(connection, episodes, settings).sequences[0].trajectory_id
    connection.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', [gone])
    found = convert(connection, episodes, settings)
    assert found.sequences and gone not in {sequence.trajectory_id for sequence in found.sequences}


@pytest.mark.long
def test_memory_does_not_grow_with_the_batch(database, settings):
    peaks = []
    window = f"{START:%Y-%m-%dT%H}:00"
    with database.connect() as connection:
        insert_many(connection, ManyRows(1200, START, START + HOUR, agents=40, steps=4, prompt_characters=4000))
        episodes = [BatchEpisode(window, e.agent_id, e.trajectory_ids, 0.5, 1, 1.5, None, None)
                    for e in read_window(connection, window, settings, texts=False).episodes]  # fmt: skip
        for some in (episodes[:12], episodes):
            tracemalloc.start()
            found = convert(connection, some, settings)
            assert (
                preflight_document(found, [], {}, TrainPlan())["sequences"] == len(found.sequences) == sum(found.per_episode.values()) > 800
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 840 * 4000  # of texts of 16 kB a row


def test_only_logprobs_with_token_ids_count_as_such(connection, settings):
    whole = convert(connection, episodes_of(connection, settings), settings)
    first, second, third, fourth, *_ = whole.sequences

    def recorded(sequence, **changes):
        return structs.replace(sequence, logprobs=[{"token": "a", "logprob": -0.5, "tokenId": 7} | changes])

    some = [recorded(first), recorded(second, tokenId=None), recorded(third, logprob=float("nan")), structs.replace(fourth, logprobs=[])]
    assert preflight_document(replace(whole, sequences=some), [], {}, TrainPlan())["logprobShare"] == 0.25


def test_scripts_that_wrote_texts_are_named(connection, settings):
    whole = convert(connection, episodes_of(connection, settings), settings)
    first, second, third, *_ = whole.sequences
    written = [structs.replace(first, model="scripted/momentum"), structs.replace(second, model="scripted/balanced"), third]
    assert preflight_document(replace(whole, sequences=written), [], {}, TrainPlan())["scripts"] == ["balanced", "momentum"]


def test_a_cut_answer_does_not_train_and_is_counted(database, settings):
    reasons = ("stop", "length", "content_filter", "content-filter", "LENGTH", "odd", 7, None)
    calls = [make_call(response=f"I hold {number}.", finishReason=reason) for number, reason in enumerate(reasons)]
    row = make_trajectory("cut", "agent-1", steps=[make_step(number, calls=[call]) for number, call in enumerate(calls)], minute=5)
    episodes = [BatchEpisode(f"{START:%Y-%m-%dT%H}:00", "agent-1", ["cut"], 0.5, 1, 1.5, None, None)]
    with database.connect() as connection:
        insert(connection, "trajectories", [row])
        found = convert(connection, episodes, settings)
    assert found.left_out == {"an answer that was cut off": 4}
    assert [(one.response, one.finish_reason) for one in found.sequences] == [
        ("I hold 0.", "stop"), ("I hold 5.", None), ("I hold 6.", None), ("I hold 7.", None),
    ]  # fmt: skip


def test_what_too_old_a_version_served_is_not_trained(database, settings):
    versions = ["v1.0.2", "v1.0.1", "v1.0.0"]  # newest first
    calls = [make_call(modelVersion=version, response=str(version)) for version in (*versions, "v0.9.0", None)]
    row = make_trajectory("t", "agent-1", steps=[make_step(number, calls=[call]) for number, call in enumerate(calls)], minute=5)
    window = f"{START:%Y-%m-%dT%H}:00"
    episodes = [BatchEpisode(window, "agent-1", ["t"], 0.5, 1, 1.5, None, None)]
    with database.connect() as connection:
        insert(connection, "trajectories", [row])
        found = {
            limit: convert(connection, episodes, settings.model_copy(update={"max_staleness_versions": limit}), versions)
            for limit in (None, 1, 0)
        }
    assert [len(found[limit].sequences) for limit in (None, 1, 0)] == [5, 4, 3]
    # another line's version, and none, have no age
    assert [one.response for one in found[0].sequences] == ["v1.0.2", "v0.9.0", "None"]
    assert found[1].left_out == {"served by too old a version": 1} and not found[None].left_out
    assert found[0].staleness == {"0": 1, "1": 1, "2": 1, "unknown": 2}
