"""Output of commands: JSON or tables on standard output, remarks and progress on standard error.

A command makes its rows once, as JSON has them; tables are columns over the same rows.
"""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any

import typer
from msgspec import Struct, to_builtins
from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from babylon_rl.progress import Progress
from babylon_rl.reporting.numbers import Column as Column
from babylon_rl.reporting.numbers import legend

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
# Columns of tables in a file or pipe, and columns that no table reaches, to measure how wide one would be.
PLAIN_WIDTH, _UNBOUNDED = 200, 10_000
PLAIN_LINE_EVERY_S = 5.0
_Begin = Callable[[str, int], Callable[[int], None]]  # (label, total) -> a display that gets the units done


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Any]
    title: str | None = None


def listed(titles: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    """A table of rows that hold their cells in order."""
    return Table([Column(name, position) for position, name in enumerate(titles)], rows, title)


def emit(document: Mapping[str, Any] | Struct, parts: Sequence[Table | str], as_json: bool) -> None:
    """Write a command's result: ``document``, which may hold structs, as JSON, or the tables and sentences of ``parts``.

    Raises:
        TypeError: ``document`` holds a value that JSON cannot express.
        ValueError: a NaN or infinite number.
    """
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=to_builtins) + "\n")
    else:
        show(parts, console())


def show(parts: Sequence[Table | str], out: Console) -> None:
    """Print tables, their legends and sentences; a table that does not fit leaves out its wide columns."""
    for part in parts:
        if isinstance(part, str):
            out.print(part, markup=False)
            continue
        made = _drawn(part, part.columns)
        # How wide the table would be without the limits of this console.
        unbounded = out.options.update(max_width=_UNBOUNDED)
        if any(column.wide for column in part.columns) and out.measure(made, options=unbounded).maximum > out.width:
            made = _drawn(part, [column for column in part.columns if not column.wide])
        out.print(made)
        if part.rows and (words := legend(part.columns)):
            out.print(textwrap.fill(words, out.width), markup=False)


def _drawn(part: Table, columns: Sequence[Column]) -> rich_table.Table:
    """A plain table; numbers are right-aligned, None is a dash. If it is too wide, texts wrap in all columns but the first."""
    made = rich_table.Table(title=part.title, title_justify="left", box=None, pad_edge=False)
    rows = [[column.cell(row) for column in columns] for row in part.rows]
    for position, column in enumerate(columns):
        numeric = any(isinstance(row[position], int | float) and not isinstance(row[position], bool) for row in rows)
        made.add_column(column.title, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or position == 0)
    for row in rows:
        made.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    return made


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output or error; wide if that is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else PLAIN_WIDTH)


def say(*sentences: str) -> None:
    """Print remarks on standard error, a line each, so that ``--json`` stays one document."""
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)


@contextmanager
def progress_of_parts(indent: str = "") -> Iterator[Progress]:
    """Show a bar for each label on a terminal, else lines.

    Yields a callback ``(label, done, total)``. Labels may advance side by side. A label whose total changes is shown anew, with the units
    done so far. Lines appear when a label begins, every few seconds, and when it is done.
    """
    with ExitStack() as stack:
        # Made with the first label: rich's bars take a while to import.
        begin: _Begin | None = None
        shown: dict[tuple[str, int], tuple[Callable[[int], None], int]] = {}

        def tell(what: str, done: int, total: int) -> None:
            nonlocal begin
            kind = (what, total)
            if kind not in shown:
                begin = begin or (stack.enter_context(_bars()) if sys.stderr.isatty() else _lines)
                shown[kind] = (begin(f"{indent}{what}", total), -1)
            move, before = shown[kind]
            # Reports may come out of order; a display only goes forward.
            if done > before:
                shown[kind] = (move, done)
                move(done)

        yield tell


@contextmanager
def progress_of(what: str, total: int, indent: str = "") -> Iterator[Callable[[object], None]]:
    """Show the progress of one label. Yields a callback that counts a unit and ignores its arguments."""
    with progress_of_parts(indent) as tell:
        done = count(1)
        tell(what, 0, total)
        yield lambda _: tell(what, next(done), total)


@contextmanager
def _bars() -> Iterator[_Begin]:
    from rich import progress as rich

    columns = (rich.SpinnerColumn(), "{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn())
    with rich.Progress(*columns, rich.TimeRemainingColumn(), console=console(stderr=True)) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=total)
            return lambda done: bars.update(task, completed=done)

        yield begin


def _lines(what: str, total: int) -> Callable[[int], None]:
    began = last = time.monotonic()

    def move(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total:
            say(f"{what}: {done} of {total}, done in {now - began:.1f} s")
        elif now - last >= PLAIN_LINE_EVERY_S:
            last = now
            say(f"{what}: {done} of {total} after {now - began:.0f} s")

    say(f"{what} ...")
    return move
