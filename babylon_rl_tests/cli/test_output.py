"""The two voices of a command, and progress that never mixes with the result."""

import json

import pytest

from babylon_rl.cli.output import Column, Table, emit, listed, progress_of_parts


def test_json_is_one_document_and_the_picture_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": "Zürich", "n": 1}, ["picture"], True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "Zürich", "n": 1}
    assert "picture" not in captured.out


def test_not_a_number_is_refused_in_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        emit({"loss": float("nan")}, [], True)


def test_table_keeps_markup_as_it_is_and_shows_none_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    emit({}, [listed(["name", "n"], [["[red]x[/red]", 1], [None, 10]], "title")], False)
    assert capsys.readouterr().out.splitlines()[-2:] == ["[red]x[/red]   1", "-             10"]


def test_columns_name_keys_positions_attributes_or_functions_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    rounded = Column("z", lambda row: sum(row.values()), 1)
    emit({}, [Table([Column("x", "x"), Column("y", "y", 1), rounded], [{"x": 1, "y": 2.25}]), "A sentence."], False)
    emit({}, [Table([Column("real", "real"), Column("imaginary", "imag")], [1 + 2j])], False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["x", "y", "z"], ["1", "2.2", "3.2"], ["A", "sentence."], ["real", "imaginary"], ["1.0", "2.0"]]


def test_a_table_ends_with_the_meanings_of_its_columns_and_an_empty_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("x", "x", meaning="first"), Column("y", "y"), Column("z", "x", meaning="the same")]
    emit({}, [Table(columns, [{"x": 1, "y": 2}])], False)
    assert capsys.readouterr().out.splitlines()[-1] == "x: first; z: the same"
    emit({}, [Table(columns, [])], False)
    assert "first" not in capsys.readouterr().out


def test_progress_without_a_terminal_is_plain_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of_parts() as tell:
        for done in (0, 1, 3):
            tell("Playing", done, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "Playing ..."
    assert lines[-1].startswith("Playing: 3 of 3, done in ")


def test_work_that_grows_is_shown_anew_with_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of_parts("  ") as tell:
        for done, total in ((0, 2), (2, 2), (2, 4), (4, 4)):
            tell("v1", done, total)
        tell("base", 4, 4)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["  v1 ...", "  v1: 2 of 2", "  v1 ...", "  v1: 4 of 4", "  base ...", "  base: 4 of 4"]


def test_labels_that_advance_side_by_side_each_end_when_they_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of_parts() as tell:
        for label, done in (("v1", 1), ("base", 1), ("v1", 2), ("base", 1), ("base", 2)):
            tell(label, done, 2)
        tell("never ended", 1, 2)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["v1 ...", "base ...", "v1: 2 of 2", "base: 2 of 2", "never ended ..."]
