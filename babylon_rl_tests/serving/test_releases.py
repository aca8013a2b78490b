"""A release moves by the table of transitions alone, whoever asks, and the registry, the game's tables and gateways see each at once."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from babylon_rl.errors import ReleaseRefused, UsageError
from babylon_rl.serving import releases
from babylon_rl.serving.releases import TRANSITIONS, deploy, marked_versions, next_state, pause, propose, resume, rollback
from babylon_rl.store.database import Database
from babylon_rl.store.live_usage import write_calls
from babylon_rl.store.registry import lock_models, mark_pruned, parent_of_line
from babylon_rl.store.releases import CHANNEL, ReleaseAuthor, read_events, read_rollouts, read_routing

NOW = datetime(2025, 11, 21, 9)


def author(minute: int = 0, *, automatic: bool = False) -> ReleaseAuthor:
    return ReleaseAuthor("tester", "a test", NOW + timedelta(minutes=minute), automatic)


def statuses(connection: psycopg.Connection[Any]) -> dict[str, str]:
    rows = dict(connection.execute("SELECT version, status FROM trained_models").fetchall())
    connection.commit()
    return rows


def states(connection: psycopg.Connection[Any]) -> list[tuple[str, str, float]]:
    return [(one.version, one.state, one.percentage) for one in reversed(read_rollouts(connection))]


def test_a_gradual_rollout_rises_and_is_deployed_at_the_end(connection, settings, versions) -> None:
    assert deploy(connection, "v1.0.0", settings, author()).percentage == 1.0
    assert statuses(connection)["v1.0.0"] == "ready" and read_routing(connection).deployed is None
    for minute, share in enumerate((10, 25, 50), 1):
        deploy(connection, "v1.0.0", settings, author(minute), percentage=share)
    assert states(connection) == [("v1.0.0", "rolling", 50.0)]
    deploy(connection, "v1.0.0", settings, author(5), percentage=100)
    assert states(connection) == [("v1.0.0", "released", 100.0)]
    assert statuses(connection)["v1.0.0"] == "deployed" and read_routing(connection).deployed == "v1.0.0"
    events = read_events(connection)
    assert [(one.from_state, one.to_state, one.from_percentage, one.to_percentage) for one in events] == [
        (None, "rolling", None, 1.0), ("rolling", "rolling", 1.0, 10.0), ("rolling", "rolling", 10.0, 25.0),
        ("rolling", "rolling", 25.0, 50.0), ("rolling", "released", 50.0, 100.0),
    ]  # fmt: skip
    assert {(one.who, one.why) for one in events} == {("tester", "a test")}
    assert [one.at for one in events] == [NOW + timedelta(minutes=minute) for minute in (0, 1, 2, 3, 5)]


def test_the_next_version_supersedes_and_a_rollback_brings_the_one_before_back(connection, settings, versions) -> None:
    for minute, version in enumerate(versions):
        deploy(connection, version, settings, author(minute), strategy="immediate")
    assert statuses(connection) == {"v1.0.0": "archived", "v1.0.1": "archived", "v1.0.2": "deployed"}
    assert rollback(connection, settings, author(5)).version == "v1.0.2"
    assert statuses(connection) == {"v1.0.0": "archived", "v1.0.1": "deployed", "v1.0.2": "archived"}
    rollback(connection, settings, author(6))
    assert read_routing(connection).deployed == "v1.0.0"
    rollback(connection, settings, author(7))
    assert read_routing(connection).deployed is None
    with pytest.raises(ReleaseRefused, match="Nothing is released"):
        rollback(connection, settings, author(8))
    assert marked_versions(connection) == set(versions)


def test_a_rollback_can_name_the_version_or_the_base(connection, settings, versions) -> None:
    for minute, version in enumerate(versions[:2]):
        deploy(connection, version, settings, author(minute), strategy="immediate")
    with pytest.raises(ReleaseRefused, match=r"v1\.0\.2 was never deployed: `babylon-rl models deploy v1\.0\.2` does it"):
        rollback(connection, settings, author(2), "v1.0.2")
    rollback(connection, settings, author(3), "v1.0.0")
    assert read_routing(connection).deployed == "v1.0.0"
    rollback(connection, settings, author(4), "base")
    assert read_routing(connection).deployed is None


def test_a_rollback_takes_the_version_on_trial_back_and_leaves_the_deployed_one(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author(), strategy="immediate")
    deploy(connection, "v1.0.1", settings, author(1), percentage=25)
    assert rollback(connection, settings, author(2)).version == "v1.0.1"
    table = read_routing(connection)
    assert table.trial is None and table.deployed == "v1.0.0"
    assert statuses(connection) == {"v1.0.0": "deployed", "v1.0.1": "archived", "v1.0.2": "ready"}


def test_a_version_that_was_rolled_back_is_deployed_again_by_a_person_only(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author())
    rollback(connection, settings, author(1))
    for automatic in (propose, lambda *given: deploy(given[0], given[1], settings, given[2])):
        with pytest.raises(ReleaseRefused, match=r"v1\.0\.0 was rolled back from: only a person"):
            automatic(connection, "v1.0.0", author(2, automatic=True))
    assert deploy(connection, "v1.0.0", settings, author(3), percentage=10).state == "rolling"


def test_a_paused_version_keeps_its_share_and_moves_again_after_it_was_resumed(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author(), percentage=10)
    assert pause(connection, author(1)).state == "paused"
    for refused in (lambda: pause(connection, author(2)), lambda: deploy(connection, "v1.0.0", settings, author(2), percentage=25)):
        with pytest.raises(ReleaseRefused, match=r"v1\.0\.0 is paused and cannot"):
            refused()
    assert read_routing(connection).trial.percentage == 10
    resume(connection, author(3))
    assert deploy(connection, "v1.0.0", settings, author(4), percentage=25).percentage == 25


@pytest.mark.slow
def test_one_version_is_on_trial_at_a_time(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author(), percentage=10)
    with pytest.raises(ReleaseRefused, match=r"v1\.0\.0 is rolling at 10 % of agents, and only one version"):
        deploy(connection, "v1.0.1", settings, author(1))
    deploy(connection, "v1.0.1", settings, author(2), strategy="immediate")
    assert states(connection) == [("v1.0.0", "superseded", 10.0), ("v1.0.1", "released", 100.0)]


def test_a_test_names_its_agents_and_can_become_a_rollout(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author(), strategy="test", agent_ids=["a", "b"])
    assert read_routing(connection).trial.agent_ids == ["a", "b"] and read_routing(connection).trial.percentage == 0
    deploy(connection, "v1.0.0", settings, author(1), percentage=10)
    assert read_routing(connection).trial.agent_ids == [] and states(connection) == [("v1.0.0", "rolling", 10.0)]
    for wrong in ({"strategy": "test"}, {"agent_ids": ["a"]}, {"strategy": "immediate", "percentage": 5.0}, {"percentage": 0.0}):
        with pytest.raises(UsageError):
            deploy(connection, "v1.0.1", settings, author(2), **wrong)


def test_candidates_wait_and_the_newest_counts(connection, settings, versions) -> None:
    propose(connection, "v1.0.0", author())
    propose(connection, "v1.0.1", author(1))
    assert states(connection) == [("v1.0.0", "superseded", 0.0), ("v1.0.1", "candidate", 0.0)]
    deploy(connection, "v1.0.1", settings, author(2))
    assert states(connection)[-1] == ("v1.0.1", "rolling", 1.0)
    with pytest.raises(ReleaseRefused, match=r"v1\.0\.1 is rolling and cannot become a candidate"):
        propose(connection, "v1.0.1", author(3))


def test_what_cannot_be_deployed_is_refused_with_the_reason(connection, settings, versions) -> None:
    connection.execute("UPDATE trained_models SET status = 'failed' WHERE version = 'v1.0.1'")
    connection.execute(
        'INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", "updatedAt")'
        " VALUES ('x', 'x', %s, 'b', 'p', %s)",
        ["v9.0.0", NOW],
    )
    connection.commit()
    for version, words in (("v7.7.7", "There is no version"), ("v1.0.1", "is failed"), ("v9.0.0", "made by another producer")):
        with pytest.raises(ReleaseRefused, match=words):
            deploy(connection, version, settings, author())
    deploy(connection, "v1.0.0", settings, author(), strategy="immediate")
    with pytest.raises(ReleaseRefused, match="is deployed already"):
        deploy(connection, "v1.0.0", settings, author(1), percentage=10)
    assert len(read_events(connection)) == 1


def test_every_pair_of_state_and_action_is_in_the_table_or_refused() -> None:
    every = {None} | {after for _, after, _ in TRANSITIONS.values()}
    for state, (action, (possible_in, after, _)) in itertools.product(every, TRANSITIONS.items()):
        if state in possible_in:
            assert next_state("v1.0.0", state, action) == after
        else:
            with pytest.raises(ReleaseRefused, match=r"^v1\.0\.0 .* cannot "):
                next_state("v1.0.0", state, action)
        assert state not in ("rolled_back", "superseded") or state not in possible_in


def test_concurrent_transitions_happen_one_after_the_other(database: Database, connection, settings, versions) -> None:
    start, refused, done = threading.Barrier(12), [], []

    def run(number: int) -> None:
        with database.connect() as own:
            start.wait()
            try:
                done.append(deploy(own, versions[number % 3], settings, author(number), percentage=10))
            except ReleaseRefused as error:
                refused.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One version won; its other three deployments set the same share again.
    assert len(done) == 4 and len({one.version for one in done}) == 1 and len(refused) == 8
    assert len(read_rollouts(connection)) == 1 and len(read_events(connection)) == 4


def test_concurrent_rollbacks_end_one_release_each(database: Database, connection, settings, versions) -> None:
    for minute, version in enumerate(versions):
        deploy(connection, version, settings, author(minute), strategy="immediate")
    start, ended = threading.Barrier(3), []

    def run() -> None:
        with database.connect() as own:
            start.wait()
            ended.append(rollback(own, settings, author(9)).version)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == versions and read_routing(connection).deployed is None


def test_listeners_hear_of_a_transition_when_it_commits_and_of_none_that_failed(database: Database, connection, settings, versions) -> None:
    with database.connect(autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        with pytest.raises(ReleaseRefused):
            deploy(connection, "v7.7.7", settings, author())
        assert list(listener.notifies(timeout=0.2)) == []
        deploy(connection, "v1.0.0", settings, author())
        heard = list(listener.notifies(timeout=5, stop_after=1))
        assert [one.payload for one in heard] == ["rollouts"]
        assert read_routing(listener).trial.version == "v1.0.0"


def test_events_cannot_be_changed(connection, settings, versions) -> None:
    deploy(connection, "v1.0.0", settings, author())
    for statement in ("UPDATE babylon_rl.rollout_events SET who = 'x'", "DELETE FROM babylon_rl.rollout_events"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            connection.execute(statement)
        connection.rollback()


def test_the_games_switch_follows_only_where_it_is_set(connection, settings, versions) -> None:
    def switch() -> Any:
        row = connection.execute('SELECT "wandbModel", "wandbEnabled" FROM "SystemSettings"').fetchone()
        connection.commit()
        return row

    connection.execute("UPDATE babylon_rl.model_lineage SET backend = 'serverless'")
    connection.execute("UPDATE trained_models SET \"storagePath\" = 'team/agent:' || version")
    connection.commit()
    deploy(connection, "v1.0.0", settings, author(), strategy="immediate")
    assert switch() is None
    switching = settings.model_copy(update={"game_switch": True})
    deploy(connection, "v1.0.1", switching, author(1), percentage=50)
    assert switch() is None  # the game knows no shares
    deploy(connection, "v1.0.1", switching, author(2), percentage=100)
    assert switch() == ("team/agent:v1.0.1", True)
    rollback(connection, switching, author(3))
    assert switch() == ("team/agent:v1.0.0", True)
    rollback(connection, switching, author(4))
    assert switch() == (None, False)


def test_all_transitions_leave_one_trial_and_one_release_at_most(connection, settings, versions) -> None:
    moves = (
        lambda n: deploy(connection, versions[n % 3], settings, author(n), percentage=10),
        lambda n: deploy(connection, versions[n % 3], settings, author(n), strategy="immediate"),
        lambda n: rollback(connection, settings, author(n)),
        lambda n: pause(connection, author(n)),
        lambda n: resume(connection, author(n)),
        lambda n: propose(connection, versions[n % 3], author(n)),
    )
    number = 0x5EED
    for step in range(60):
        number = (1103515245 * number + 12345) % 2**31
        try:
            moves[(number >> 8) % 6](number >> 16)
        except ReleaseRefused:
            pass
        live = read_rollouts(connection, releases.LIVE)
        table = read_routing(connection)
        deployed = [version for version, status in statuses(connection).items() if status == "deployed"]
        assert deployed == [one.version for one in live if one.state == "released"] == ([table.deployed] if table.deployed else []), step
        assert len(deployed) <= 1 and sum(one.state in ("rolling", "paused") for one in live) <= 1


def test_the_next_training_continues_from_the_deployed_version(connection, settings, versions) -> None:
    def parent(*, promoted: bool = False) -> str | None:
        found = parent_of_line(connection, "tiny-base", promoted=promoted)
        connection.commit()
        return None if found is None else found.version

    assert (parent(), parent(promoted=True)) == ("v1.0.2", None)  # nothing is deployed: the newest, or the base
    deploy(connection, "v1.0.1", settings, author(), percentage=50)
    assert (parent(), parent(promoted=True)) == ("v1.0.2", None)
    deploy(connection, "v1.0.1", settings, author(1), percentage=100)
    assert (parent(), parent(promoted=True)) == ("v1.0.1", "v1.0.1")
    deploy(connection, "v1.0.2", settings, author(2))
    rollback(connection, settings, author(3))
    rollback(connection, settings, author(4))
    assert (parent(), parent(promoted=True)) == ("v1.0.0", None)  # what was rolled back is no parent


REPORT = """
    INSERT INTO babylon_rl.benchmark_reports
        ("batchId", "version", "decision", "reason", "markets", "minImprovement", "rows", "tableMarkdown", "dataVersion", "createdAt")
    VALUES (%s, %s, %s, '', 48, 0, '[]', '', '', '2025-11-20')
"""


def test_gains_that_the_gate_cannot_show_yet_add_up_to_one_that_it_can(connection, settings, make_version) -> None:
    def parent() -> str | None:
        found = parent_of_line(connection, "tiny-base", promoted=True)
        connection.commit()
        return None if found is None else found.version

    def compared(version: str, parent: str | None, decision: str) -> None:
        connection.execute(REPORT, [make_version(version, parent=parent), version, decision])
        connection.commit()

    compared("v1.0.0", None, "inconclusive")
    assert parent() == "v1.0.0", "the base is deployed"
    compared("v1.0.1", "v1.0.0", "pass")
    make_version("v1.0.2", parent="v1.0.1")
    assert parent() == "v1.0.1", "the gate has not compared the newest"
    deploy(connection, "v1.0.1", settings, author(), percentage=100)
    compared("v1.0.3", "v1.0.1", "inconclusive")
    compared("v1.0.4", "v1.0.3", "fail")
    compared("v1.0.5", "v1.0.4", "inconclusive")
    assert parent() == "v1.0.3", "one was refused, and the other came from it"
    deploy(connection, "v1.0.3", settings, author(1), percentage=50)
    rollback(connection, settings, author(2))
    assert parent() == "v1.0.1"
    rollback(connection, settings, author(3))
    assert parent() == "v1.0.0", "what was rolled back is no parent, nor what came from it"


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def until_waiting(database: Database, number: int) -> None:
    """Wait until so many sessions wait for a lock, 20 s at most."""
    end = time.monotonic() + 20
    with database.connect(autocommit=True) as watch:
        while watch.value(WAITING) != number and time.monotonic() < end:
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_version_is_deployed_while_a_gateway_counts_calls_of_both(database: Database, connection, settings, versions, order) -> None:
    old, new = (versions[place] for place in order)
    connection.execute("UPDATE trained_models SET status = 'deployed', \"deployedAt\" = %s WHERE version = %s", [NOW, old])
    connection.commit()
    call = {"at": NOW.isoformat(), "arm": "rollout", "status": 200, "latencyMs": 1.0, "keyName": None}
    calls = [call | {"callId": f"call-{number}", "version": versions[number % 2]} for number in range(6)]

    def released():
        with database.connect() as own:
            return deploy(own, new, settings, author(), strategy="immediate")

    def written():
        with database.connect(autocommit=True) as own:
            return write_calls(own, calls, [])

    with database.connect() as held, ThreadPoolExecutor() as pool:
        # The release is stopped between its writes to the two versions.
        held.execute("LOCK TABLE babylon_rl.rollouts IN SHARE MODE")
        release = pool.submit(released)
        until_waiting(database, 1)
        writing = pool.submit(written)
        until_waiting(database, 2)
        held.rollback()
        assert release.result(30).state == "released" and writing.result(30) == 6
    counts = dict(connection.execute('SELECT version, "totalInferences" FROM trained_models').fetchall())
    assert (counts[old], counts[new]) == (3, 3)
    assert (statuses(connection)[old], statuses(connection)[new]) == ("archived", "deployed")


@pytest.mark.slow
def test_versions_are_given_up_while_others_lock_their_rows(database: Database, make_version) -> None:
    # Their rows lie in the order of the numbers, and are locked in that of the texts.
    names = ["v1.0.2", "v1.0.3", "v1.0.10"]
    for name in names:
        make_version(name)

    def given_up() -> None:
        with database.connect() as own:
            batches = [batch for (batch,) in own.execute('SELECT "trainingBatch" FROM trained_models').fetchall()]
            mark_pruned(own, batches, NOW)

    def locked() -> None:
        with database.connect() as own:
            lock_models(own)

    with database.connect() as held, ThreadPoolExecutor() as pool:
        held.execute("SELECT FROM trained_models WHERE version = %s FOR UPDATE", [names[1]])
        both = [pool.submit(given_up), pool.submit(locked)]
        until_waiting(database, 2)
        held.rollback()
        for one in both:
            one.result(30)
        assert set(statuses(held).values()) == {"archived"}
