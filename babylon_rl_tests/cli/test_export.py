"""``export``: the shape of CLI.md, the numbers of ``scores``, and a sentence for what cannot be exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from babylon_rl.cli import run
from babylon_rl.store.database import Database
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.rows import WINDOW, insert, make_group
from babylon_rl_tests.training.exports import UNSCORED, content_of, fill

TEMPLATES["exportable"] = ("sample", fill)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(copy_of: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """``call("export", ...)`` on the scored game: exit code, standard output, standard error."""
    return caller(copy_of("exportable"), monkeypatch, capsys, tmp_path)


def caller(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_it


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hf", "archive"])
def test_files_are_listed_and_there(call: Call, tmp_path: Path, form: str) -> None:
    code, out, said = call("export", "--from", "2025-10-29T13:00", "--to", "2025-10-29T18:00", "--format", form, "out", "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 0
    assert set(document["files"]) == {str(tmp_path / "out" / name) for name in content_of(tmp_path / "out")}
    assert sum(split["windows"] for split in document["splits"].values()) == 5
    assert sum(split["records"] for split in document["splits"].values()) == document["records"] > 0
    assert "1 hours have no scores" in said and "recorded no prompt" in said


def test_exported_scores_are_those_of_the_scores_command(call: Call, tmp_path: Path) -> None:
    window = "2025-10-29T14:00"
    assert call("export", "--from", window, "--to", "2025-10-29T15:00", "--format", "parquet", "--split", "1", "out")[0] == 0
    frame = pandas.read_parquet(tmp_path / "out" / "train.parquet")
    scores = {row["agentId"]: row for row in json.loads(call("scores", window, "--json")[1])["scores"]}
    pnls = {row["agentId"]: row["windowPnl"] for row in json.loads(call("episodes", window, "--json")[1])["episodes"]}
    assert len(frame) > 0
    for row in frame.itertuples():
        own = scores[row.agentId]
        assert (row.score, row.advantage, row.rank, row.windowPnl) == (own["score"], own["advantage"], own["rank"], pnls[row.agentId])


def test_people_see_splits_and_files(call: Call, tmp_path: Path) -> None:
    code, out, said = call("export", "--format", "archive", "out")
    assert code == 0
    assert "LLM calls" in out and str(tmp_path / "out" / "_export.json") in out and "more ..." in out
    assert "hours exported" in said


def test_what_has_no_score_is_left_out_on_demand(call: Call) -> None:
    hour = ("--from", UNSCORED, "--to", "2025-10-29T18:00", "--format", "jsonl")
    code, out, said = call("export", *hour, "--only-scored", "out", "--json")
    assert (code, json.loads(out)["files"]) == (0, [])
    assert "These hours hold no LLM call to export: nothing was written." in said and "LLM calls are left out: without a score" in said


def test_what_makes_no_sense_is_a_sentence(call: Call, tmp_path: Path) -> None:
    cases = [
        (("--from", "2025-10-29T14:00", "--to", "2025-10-29T13:00"), 2, "The range runs backwards"),
        (("--from", "2025-13-45T99:00"), 2, "is not a window"),
        (("--to", ""), 2, "is not a window"),
        (("--from", "2931-10-29T10:00"), 2, "lies in the future"),
        (("--split", "1.5"), 2, "--split is 1.5"),
        (("--all", "--only-trainable"), 2, "--all takes what has no score"),
        (("--from", "2024-01-01T00:00", "--to", "2024-01-02T00:00"), 0, "No complete hour here holds a trajectory: nothing was written."),
    ]
    for arguments, code, sentence in cases:
        found, _, said = call("export", "--format", "hf", *arguments, "out")
        assert found == code and sentence in said
    assert not (tmp_path / "out").exists()


def test_a_directory_of_somebody_elses_files_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    window = ("--from", WINDOW, "--to", "2025-11-15T11:00", "--format", "jsonl")
    code, _, said = call("export", *window, "out")
    assert code == 2 and "no export wrote" in said
    assert call("export", *window, "--force", "out")[0] == 0
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert call("export", *window, "out/thesis.tex/below")[0] == 3


def test_an_hour_that_has_not_ended_is_left_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with database.connect() as connection:
        insert(connection, "trajectories", make_group())
        connection.execute("""UPDATE trajectories SET "windowId" = '2931-10-29T10:00', "startTime" = '2931-10-29T10:05'""")
    code, _, said = caller(database, monkeypatch, capsys, tmp_path)("export", "--format", "jsonl", "out")
    assert code == 0
    assert "2931-10-29T10:00 has not ended and is left out." in said and "nothing was written" in said


def test_a_database_as_the_game_left_it_is_exported_without_scores(
    raw_sample_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, said = caller(raw_sample_database, monkeypatch, capsys, tmp_path)("export", "--format", "parquet", "--split", "1", "out")
    assert code == 0 and "12 hours have no scores" in said
    frame = pandas.read_parquet(tmp_path / "out" / "train.parquet")
    assert len(frame) > 0 and frame["score"].isna().all()
