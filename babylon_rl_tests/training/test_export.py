"""What is exported, how it is split, and that every format holds the same records and loads in the tool that it is for."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas
import pyarrow.json
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.episodes.reading import read_window, sync_windows
from babylon_rl.errors import UsageError
from babylon_rl.judge.consensus import scores_document
from babylon_rl.judge.prompt.templates import SCORE, fill_template
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.training.export import FORMATS
from babylon_rl.training.export.destination import destination
from babylon_rl.training.export.hours import Selection, Splits, read_hours
from babylon_rl.training.export.parquet_files import HuggingFaceWriter, columns_table, schema
from babylon_rl.training.export.records import COLUMNS
from babylon_rl.windows import HOUR, window_start
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.rows import WINDOW, insert, make_call, make_group, make_step, make_trajectory
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.training.exports import (
    CANARY,
    NOW,
    SCHEMA,
    TOKENS,
    UNSCORED,
    content_of,
    exported,
    fill,
    groups_of,
    lines_of,
    records_of,
    windows_of,
)

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES["exportable"] = ("sample", fill)


@pytest.fixture
def read_sample(copy_of: Callable[[str], Database]) -> Database:
    return copy_of("exportable")


@given(st.integers(2000, 2100), st.integers(0, 8759), st.integers(), st.floats(0, 1), st.floats(0, 1))
def test_the_split_of_a_window_follows_from_seed_and_window_alone(year: int, hour: int, seed: int, train: float, more: float) -> None:
    window = f"{year}-{1 + hour % 12:02}-{1 + hour % 28:02}T{hour % 24:02}:00"
    splits = Splits(train, 0.0, seed)
    assert splits.of(window) == Splits(train, 0.0, seed).of(window)
    if splits.of(window) == "train" and more >= train:
        assert Splits(more, 0.0, seed).of(window) == "train"
    assert Splits(1.0, 0.0, seed).of(window) == "train" and Splits(0.0, 0.0, seed).of(window) == "test"
    assert Splits(0.0, 1.0, seed).of(window) == "validation"


def test_splits_have_about_the_shares_that_were_asked_for_and_seeds_differ() -> None:
    windows = [f"2025-{month:02}-{day:02}T{hour:02}:00" for month in range(1, 13) for day in range(1, 29) for hour in range(24)]
    found = [Splits(0.7, 0.2, 3).of(window) for window in windows]
    assert [round(found.count(name) / len(found), 1) for name in ("train", "validation", "test")] == [0.7, 0.2, 0.1]
    assert found != [Splits(0.7, 0.2, 4).of(window) for window in windows]


@pytest.mark.parametrize("shares", [(1.1, 0.0), (-0.1, 0.0), (0.9, 0.2), (float("nan"), 0.0)])
def test_impossible_shares_are_a_sentence(shares: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="--split"):
        Splits(*shares)


@pytest.mark.slow
def test_every_format_holds_the_same_records(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    found = {}
    for form in FORMATS:
        done = exported(connection, windows, tmp_path / form, form, settings)
        found[form] = records_of(form, tmp_path / form)
        assert sorted(done.files) == sorted(str(path) for path in (tmp_path / form).rglob("*") if path.is_file())
        assert done.records == len(found[form])
    assert found["jsonl"] == found["parquet"] == found["hf"] == found["archive"]
    assert {record["split"] for record in found["jsonl"]} == {"train", "validation", "test"}
    assert {record["source"] for record in found["jsonl"]} == {"embedded", "llm_call_logs"}


def test_a_record_is_the_call_exactly_as_it_was_served(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    exported(connection, [WINDOW], tmp_path, "archive", settings)
    first, second, third = (record for record in records_of("archive", tmp_path) if record["agentId"] == "agent-5" and record["step"] < 3)
    assert first["messages"] == [{"role": "system", "content": "You trade."}, {"role": "user", "content": "What now?"}]
    assert (first["response"], first["responseFormat"], first["logprobs"]) == ('{"action": "hold"}', SCHEMA, TOKENS)
    assert (first["callId"], first["modelVersion"], first["purpose"], first["source"]) == ("call-5", "v1.2.3", "action", "embedded")
    assert second["messages"] == [{"role": "user", "content": "What now?"}]
    assert second["response"] == "two\nlines \u2028 \u0000 \U0001f600"
    assert second["logprobs"] == [{"token": "a", "tokenId": None, "logprob": -1.0}]
    assert (third["logprobs"], third["scripted"], first["scripted"]) == (None, True, False)
    assert first["weight"] == pytest.approx(1 / 6)


@pytest.mark.slow
def test_records_carry_what_scores_and_episodes_say(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    exported(connection, windows, tmp_path, "parquet", settings)
    scores = stored_scores(connection, windows)
    episodes = {(window, e.agent_id): e for window in windows for e in read_window(connection, window, settings).episodes}
    records = records_of("parquet", tmp_path)
    assert len(scores) > 3
    for record in records:
        episode, group = episodes[record["window"], record["agentId"]], scores.get(record["window"])
        own = next((entry for entry in group.scores if entry.agent_id == record["agentId"]), None) if group else None
        names = ("score", "advantage", "rank", "judge", "groupSize")
        assert tuple(record[name] for name in names) == (
            (own.score, own.advantage, own.rank, "heuristic", group.group_size) if own and group else (None,) * 5
        )
        assert (record["windowPnl"], record["winRate"]) == (episode.window_pnl, episode.win_rate)
        assert record["trajectoryIds"] == list(episode.trajectory_ids) and record["trajectoryId"] in episode.trajectory_ids
    usable = [episode for episode in episodes.values() if episode.usable]
    assert len(records) == sum(len(episode.sequences) for episode in usable)
    by_episode = {(record["window"], record["agentId"]): 0.0 for record in records}
    for record in records:
        by_episode[record["window"], record["agentId"]] += record["weight"]
    assert list(by_episode.values()) == pytest.approx([1.0] * len(by_episode))


@pytest.mark.slow
def test_windows_keep_their_split_as_the_range_grows(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    splits = []
    for number in (len(windows) // 2, len(windows)):
        exported(connection, windows[:number], tmp_path / "grows", "hf", settings)
        of_window: dict[str, set[str]] = {}
        for file in (tmp_path / "grows" / "data").iterdir():
            for record in pyarrow.parquet.read_table(file).to_pylist():
                of_window.setdefault(record["window"], set()).add(file.name.partition("-")[0])
        assert all(len(names) == 1 for names in of_window.values())
        splits.append(of_window)
    assert splits[0].items() <= splits[1].items() and len(splits[0]) < len(splits[1])


def test_hours_without_scores_are_exported_with_nulls_or_left_out(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = [UNSCORED, WINDOW]
    everything = exported(connection, windows, tmp_path / "all", "parquet", settings, splits=Splits(1.0))
    frame = pandas.read_parquet(tmp_path / "all" / "train.parquet")
    unscored = frame[frame["window"] == UNSCORED]
    assert len(unscored) > 0 and unscored[["score", "advantage", "rank", "judge"]].isna().all(axis=None)
    assert frame[frame["window"] == WINDOW]["score"].notna().all()
    assert vars(everything.splits["train"])["windows"] - vars(everything.splits["train"])["scored"] == 1
    scored = exported(connection, windows, tmp_path / "some", "parquet", settings, selection=Selection(only_scored=True))
    assert {record["window"] for record in records_of("parquet", tmp_path / "some")} == {WINDOW}
    assert scored.left_out == {"without a score": len(unscored)}


def test_only_trainable_leaves_out_what_carries_no_signal(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    flat = "2025-11-15T09:00"
    steps = [make_step(number, calls=[make_call()]) for number in range(5)]
    rows = [make_trajectory(f"flat{n}", f"agent-{n}", steps=steps, minute=-50, windowId=flat, finalPnL=1.0) for n in range(5)]
    insert(connection, "trajectories", rows)
    sync_windows(connection, [flat], settings, NOW)
    score_windows(connection, [flat], settings, NOW)
    connection.commit()
    done = exported(connection, [flat, UNSCORED, WINDOW], tmp_path, "jsonl", settings, selection=Selection(only_trainable=True))
    records = records_of("jsonl", tmp_path)
    assert {record["window"] for record in records} == {WINDOW}
    assert all(record["response"].strip() and record["advantage"] is not None for record in records)
    assert done.left_out["in a group without spread"] == 25
    assert done.left_out["an empty response"] == 12
    with pytest.raises(UsageError, match="--all"):
        Selection(everything=True, only_trainable=True)


def test_short_episodes_and_quarantined_hours_need_to_be_asked_for(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    insert(connection, "trajectories", [make_trajectory("short", "agent-9", steps=[make_step(0, calls=[make_call()])])])
    connection.execute("""UPDATE babylon_rl.windows SET "state" = 'quarantined' WHERE "window" = %s""", (UNSCORED,))
    connection.commit()
    usual = exported(connection, [UNSCORED, WINDOW], tmp_path / "usual", "archive", settings)
    assert usual.left_out["in an episode with too few steps"] == 1 and usual.left_out["in a quarantined hour"] > 1
    assert usual.stale == 0  # an episode too short for the group changes nothing about it
    every = exported(connection, [UNSCORED, WINDOW], tmp_path / "all", "archive", settings, selection=Selection(everything=True))
    assert every.left_out == {} and every.records == usual.records + sum(usual.left_out.values())
    assert {r["agentId"] for r in records_of("archive", tmp_path / "all") if not r["usable"]} >= {"agent-9"}


@pytest.mark.long
def test_leaks_are_left_out_and_hidden_knowledge_is_in_no_file(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    told = fill_template(SCORE, agent="agent-7", score=0.5, rank=1, group=6)
    quoted = json.dumps({f"{CANARY}-market": 0.987654})
    late = [make_step(0, calls=[make_call(userPrompt=told)]), make_step(1, calls=[make_call(userPrompt=quoted)])]
    steps = [*late, *(make_step(number, calls=[make_call()]) for number in range(2, 6))]
    knowledge = json.dumps({"gameKnowledge": {"trueProbabilities": {f"{CANARY}-market": 0.987654}}})
    insert(connection, "trajectories", [make_trajectory("leaky", "agent-7", steps=steps, metadataJson=knowledge)])
    connection.commit()
    for form in FORMATS:
        done = exported(connection, windows_of(connection), tmp_path / form, form, settings, selection=Selection(everything=True))
        assert done.left_out == {"leak": 2}
        assert done.stale == 1
        assert sum(record["trajectoryId"] == "leaky" for record in records_of(form, tmp_path / form)) == 4
    for form in ("jsonl", "archive"):
        for name, content in content_of(tmp_path / form).items():
            assert CANARY.encode() not in content and b"reasoning" not in content, name


@pytest.mark.long
@pytest.mark.parametrize("form", FORMATS)
def test_the_same_input_gives_the_same_bytes(form: str, connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    for name in ("once", "again"):
        exported(connection, windows, tmp_path / name, form, settings)
    assert content_of(tmp_path / "once") == content_of(tmp_path / "again")
    before = {path: path.stat().st_size for path in (tmp_path / "once").rglob("*")}
    exported(connection, windows, tmp_path / "once", form, settings)
    assert {path: path.stat().st_size for path in (tmp_path / "once").rglob("*")} == before


@pytest.mark.long
def test_jsonl_loads_in_art_as_groups_with_messages_reward_and_metadata(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    exported(connection, windows_of(connection), tmp_path, "jsonl", settings, splits=Splits(1.0))
    script = """
import json, sys
from art.utils.trajectory_migration import deserialize_trajectory_groups
groups = deserialize_trajectory_groups(open(sys.argv[1]).read())
print(json.dumps([[{
    "reward": t.reward, "metadata": t.metadata, "messages": t.messages(),
    "tokens": [entry.token for m in t.messages_and_choices if not isinstance(m, dict) for entry in m.logprobs.content],
} for t in group] for group in groups]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "train.jsonl")],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    groups = json.loads(done.stdout.splitlines()[-1])
    records = records_of("jsonl", tmp_path)
    trajectories = [trajectory for group in groups for trajectory in group]
    assert len(trajectories) == len(records)
    for group in groups:
        assert len({trajectory["metadata"]["window"] for trajectory in group}) == 1
        assert len({trajectory["metadata"]["score"] is None for trajectory in group}) == 1
    for trajectory in trajectories:
        score = trajectory["metadata"]["score"]
        assert trajectory["reward"] == (0.0 if score is None else score)
        assert trajectory["messages"][-1]["role"] == "assistant" and trajectory["messages"][-2]["role"] == "user"
    assert [t["tokens"] for t in trajectories if t["metadata"]["callId"] == "call-3"] == [["token_id:11", f"token_id:{2**40}"]] * 2
    assert sum(bool(trajectory["tokens"]) for trajectory in trajectories) == 12


@pytest.mark.parametrize("form", FORMATS)
def test_why_an_answer_ended_is_exported(form: str, database: Database, settings: Settings, tmp_path: Path) -> None:
    ids = [{"token": "a", "tokenId": 11, "logprob": -0.25}]
    calls = [make_call(finishReason="length", logprobs=ids), make_call(finishReason="content-filter"), make_call(logprobs=ids)]
    steps = [make_step(number, calls=[calls[number % 3]]) for number in range(6)]
    with database.connect() as connection:
        insert(connection, "trajectories", [make_trajectory(f"t{n}", f"agent-{n}", steps=steps, minute=5) for n in range(6)])
        connection.commit()
        exported(connection, [WINDOW], tmp_path, form, settings, splits=Splits(1.0))
    found = records_of(form, tmp_path)
    assert [record["finishReason"] for record in found] == ["length", "content_filter", None] * 12
    if form == "jsonl":
        lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        choices = [t["messages_and_choices"][-1] for line in lines for t in line["trajectories"]]
        assert [choice.get("finish_reason") for choice in choices] == ["length", None, "stop"] * 12


def test_what_is_trainable_leaves_out_cut_answers(database: Database, settings: Settings, tmp_path: Path) -> None:
    def row(agent: int) -> dict[str, Any]:
        steps = [make_step(n, calls=[make_call(finishReason="length" if n else "stop")], pnl=float(n * agent)) for n in range(6)]
        return make_trajectory(f"t{agent}", f"agent-{agent}", steps=steps, minute=5, finalPnL=10.0 * agent)

    with database.connect() as connection:
        insert(connection, "trajectories", list(map(row, range(6))))
        connection.commit()
        sync_windows(connection, [WINDOW], settings, NOW)
        score_windows(connection, [WINDOW], settings, NOW)
        connection.commit()
        done = exported(connection, [WINDOW], tmp_path, "jsonl", settings, selection=Selection(only_trainable=True))
    assert done.records == 6 and done.left_out == {"an answer that was cut off": 30}


def test_an_episode_without_a_score_is_not_compared_with_those_that_have_one(
    connection: Connection, settings: Settings, tmp_path: Path
) -> None:
    insert(connection, "trajectories", [make_trajectory("late", "agent-late", finalPnL=3.0)])
    connection.commit()
    done = exported(connection, [WINDOW], tmp_path, "jsonl", settings)
    scored, unscored = groups_of(tmp_path)
    assert {t["metadata"]["agentId"] for t in unscored["trajectories"]} == {"agent-late"}
    assert {t["reward"] for t in unscored["trajectories"]} == {0.0}
    assert all(t["metadata"]["score"] == t["reward"] > 0 for t in scored["trajectories"])
    assert done.stale == 1


@pytest.mark.slow
def test_parquet_has_typed_columns_and_row_groups_of_one_window(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    exported(connection, windows_of(connection), tmp_path, "parquet", settings, splits=Splits(1.0))
    file = pyarrow.parquet.ParquetFile(tmp_path / "train.parquet")
    kinds = {name: str(kind) for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)}
    assert kinds["score"] == "double" and kinds["rank"] == "int64" and kinds["scripted"] == "bool"
    assert kinds["messages"].startswith("list<") and "logprob: double" in kinds["logprobs"]
    windows = [set(file.read_row_group(number, ["window"])["window"].to_pylist()) for number in range(file.num_row_groups)]
    assert all(len(some) == 1 for some in windows)
    assert len(pandas.read_parquet(tmp_path)) == file.metadata.num_rows  # the directory is a table, too


def test_a_columns_type_does_not_depend_on_the_rows_that_come_first(database: Database, settings: Settings, tmp_path: Path) -> None:
    full = {"modelVersion": "v1.0.0", "finishReason": "stop", "responseFormat": SCHEMA, "logprobs": TOKENS}
    hours = ["2025-11-15T10:00", "2025-11-15T11:00"]
    with database.connect() as connection:
        for place, (hour, changes) in enumerate(zip(hours, ({}, full), strict=True)):
            steps = [make_step(number, calls=[make_call(**changes)]) for number in range(6)]
            own = [make_trajectory(f"{hour}-{n}", f"agent-{n}", steps=steps, minute=5 + 60 * place, windowId=hour) for n in range(6)]
            insert(connection, "trajectories", own)
        connection.commit()
        for number, form in product((1, 2), ("parquet", "hf", "archive")):
            exported(connection, hours[:number], tmp_path / f"{form}{number}", form, settings, splits=Splits(1.0))
    polars = pytest.importorskip("polars", reason="polars is optional")
    for form in ("parquet", "hf"):
        (few,), (many,) = ([*(tmp_path / f"{form}{number}").rglob("*.parquet")] for number in (1, 2))
        assert pyarrow.parquet.read_schema(few).equals(pyarrow.parquet.read_schema(many))
        assert pandas.read_parquet(many)["modelVersion"].dropna().tolist() == ["v1.0.0"] * 36
        both = polars.concat([polars.read_parquet(few), polars.read_parquet(many)])
        assert both.height == 36 + 72 and polars.Null not in both.dtypes
    # Nulls for 36 rows, then values: the types of the lines are those of the tables.
    lines = tmp_path / "all.jsonl"
    lines.write_bytes(b"".join((tmp_path / "archive2" / hour / "trajectories.jsonl").read_bytes() for hour in hours))
    declared = polars.from_arrow(schema().empty_table()).schema
    assert polars.read_ndjson(lines, schema=declared).equals(polars.read_parquet(many).select(declared.names()))
    options = pyarrow.json.ParseOptions(explicit_schema=schema(), unexpected_field_behavior="error")
    assert pyarrow.json.read_json(lines, parse_options=options).equals(pyarrow.parquet.read_table(many))


def test_the_columns_are_the_records_fields_and_documented() -> None:
    assert columns_table() in (ROOT / "docs" / "howto" / "export.md").read_text()


def test_the_card_describes_what_the_dataset_holds(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    exported(connection, windows_of(connection), tmp_path, "hf", settings)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    files = {entry["split"]: sorted(tmp_path.glob(entry["path"])) for entry in card["configs"][0]["data_files"]}
    rows = {split: sum(pyarrow.parquet.read_metadata(file).num_rows for file in some) for split, some in files.items()}
    assert rows == {entry["name"]: entry["num_examples"] for entry in card["dataset_info"]["splits"]}
    assert card["dataset_info"]["download_size"] == sum(file.stat().st_size for some in files.values() for file in some)
    assert [feature["name"] for feature in card["dataset_info"]["features"]] == [column.name for column in COLUMNS]
    assert "Scores by: heuristic." in text and f"| train | {len(_windows(files['train']))} | {rows['train']} |" in text


@pytest.mark.slow
def test_large_datasets_are_cut_into_files_between_windows(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    with destination(str(tmp_path), tmp_path / "work") as place:
        writer = HuggingFaceWriter(place, file_bytes=1)
        for hour in read_hours(connection, windows, settings, Splits(1.0), Selection()):
            writer.add(hour)
        writer.close()
        place.commit({})
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [f"train-{number:05}.parquet" for number in range(len(files))]
    assert len(files) > 3 and all(len(_windows([file])) == 1 for file in files)


def test_the_archive_has_a_directory_per_window(connection: Connection, settings: Settings, tmp_path: Path) -> None:
    windows = windows_of(connection)
    exported(connection, windows, tmp_path, "archive", settings)
    assert {path.name for path in tmp_path.iterdir()} <= {*windows, "_export.json"}
    folder = tmp_path / WINDOW
    assert {path.name for path in folder.iterdir()} == {"trajectories.jsonl", "groups.jsonl", "scores.json", "metadata.json"}
    stored = scores_document(stored_scores(connection, [WINDOW])[WINDOW])
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    assert scores == stored | {"scores": [{k: v for k, v in row.items() if k != "reasoning"} for row in stored["scores"]]}
    (group,) = (json.loads(line) for line in lines_of(folder / "groups.jsonl"))
    assert [(e["agentId"], e["records"], e["windowPnl"]) for e in group["episodes"]] == [(f"agent-{n}", 6, 25.0 * n) for n in range(6)]
    metadata = json.loads((tmp_path / "2025-10-29T16:00" / "metadata.json").read_text())
    assert metadata["outcomes"]["stocks"] and metadata["eligible"] + sum(metadata["rejected"].values()) == metadata["rows"]
    assert json.loads((tmp_path / UNSCORED / "scores.json").read_text())["judge"] is None


@pytest.mark.long
@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_texts_of_an_hour(database: Database, settings: Settings, tmp_path: Path, form: str) -> None:
    start = window_start(WINDOW)
    peaks = []
    with database.connect() as connection:
        for rows in (400, 1200):
            connection.execute('TRUNCATE trajectories, llm_call_logs, "User" CASCADE')
            insert_many(connection, ManyRows(rows, start, start + HOUR, agents=20, steps=4, prompt_characters=4000))
            connection.commit()
            tracemalloc.start()
            assert exported(connection, [WINDOW], tmp_path / str(rows), form, settings).records == rows * 4 - rows // 10 * 3
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 800 * 4 * 1000  # of texts of 16 kB a row


def test_an_hour_without_an_episode_leaves_nothing(database: Database, settings: Settings, tmp_path: Path) -> None:
    with database.connect() as connection:
        insert(connection, "trajectories", [*make_group(2), make_trajectory("bad", steps="[]")])
        connection.execute("DELETE FROM trajectories WHERE \"trajectoryId\" <> 'bad'")
        connection.commit()
        for form in FORMATS:
            done = exported(connection, [WINDOW], tmp_path / form, form, settings)
            assert (done.files, done.records, (tmp_path / form).exists()) == ((), 0, False)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_range(form: str, database: Database, settings: Settings, tmp_path: Path) -> None:
    windows = [f"2025-11-14T{hour:02}:00" for hour in range(12)]
    with database.connect() as connection:
        for window in windows:
            steps = [make_step(number, calls=[make_call(userPrompt=f"{window} {number} " * 250)]) for number in range(5)]
            rows = [make_trajectory(f"{window}/{n}", f"agent-{n}", steps=steps, windowId=window) for n in range(20)]
            insert(connection, "trajectories", rows)
        connection.commit()
        exported(connection, windows, tmp_path / "warm", form, settings)
        peaks = []
        for number in (2, 12):
            tracemalloc.start()
            exported(connection, windows[:number], tmp_path / str(number), form, settings)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def _windows(files: list[Path]) -> set[str]:
    return {window for file in files for window in pyarrow.parquet.read_table(file, columns=["window"])["window"].to_pylist()}
