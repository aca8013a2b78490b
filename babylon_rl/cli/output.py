"""Output of commands: JSON or tables on standard output, progress on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
PLAIN_WIDTH, _UNBOUNDED = 200, 10_000
PLAIN_LINE_EVERY_S = 5.0


class Progress(Protocol):
    """Progress of a long step: call ``progress(n)`` after ``n`` more units."""

    def __call__(self, advance: int = 1, /) -> None: ...


def emit(document: Mapping[str, Any], render: "Callable[[Console], None]", as_json: bool) -> None:
    """Write the result of a command: ``document`` as JSON, or the output of ``render``.

    Raises:
        TypeError: ``document`` holds a value that JSON cannot express.
        ValueError: a NaN or infinite number.
    """
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        render(console())


def console(*, stderr: bool = False) -> "Console":
    """A rich console on standard output or error; wide if that is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else PLAIN_WIDTH)


def table(title: str | None, columns: list[str], rows: list[list[Any]]) -> "Table":
    """A plain table; numbers are right-aligned, None is a dash.

    If it is too wide, texts wrap in all columns but the first.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, name in enumerate(columns):
        numeric = any(isinstance(row[position], int | float) and not isinstance(row[position], bool) for row in rows)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or position == 0)
    for row in rows:
        made.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    return made


def print_fitting(out: "Console", *tables: "Table") -> None:
    """Print the first of ``tables`` (widest first) that fits the terminal unwrapped, else the last."""
    unbounded = out.options.update(max_width=_UNBOUNDED)
    fitting = (made for made in tables if out.measure(made, options=unbounded).maximum <= out.width)
    out.print(next(fitting, tables[-1]))


def say(sentence: str) -> None:
    """Print a remark on standard error, so that ``--json`` stays one document."""
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def progress(total: int | None, description: str) -> Iterator[Progress]:
    """Show the progress of a long step: a bar on a terminal, else lines.

    The lines appear at the beginning, every few seconds, and at the end.
    """
    shown = _bar(total, description) if sys.stderr.isatty() else _lines(total, description)
    with shown as advance:
        yield advance


@contextmanager
def progress_of_parts(indent: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of several labels, one after another.

    Yields a callback ``(label, done, total)``. A label whose total changes is shown anew, with the units done so far.
    """
    with ExitStack() as stack:
        shown: dict[tuple[str, int], tuple[Progress, int]] = {}

        def tell(what: str, done: int, total: int) -> None:
            kind = (what, total)
            # A new label or total closes the display before it.
            if kind not in shown:
                stack.close()
                shown[kind] = (stack.enter_context(progress(total, f"{indent}{what}")), 0)
            advance, before = shown[kind]
            advance(max(0, done - before))
            shown[kind] = (advance, max(done, before))

        yield tell


@contextmanager
def _bar(total: int | None, description: str) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console(stderr=True)) as bars:
        task = bars.add_task(description, total=total)
        yield lambda advance=1, /: bars.advance(task, advance)


@contextmanager
def _lines(total: int | None, description: str) -> Iterator[Progress]:
    began = last = time.monotonic()
    done = 0
    of_total = "" if total is None else f" of {total}"

    def advance(units: int = 1, /) -> None:
        nonlocal done, last
        done += units
        if time.monotonic() - last >= PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            say(f"{description}: {done}{of_total} after {last - began:.0f} s")

    say(f"{description} ...")
    yield advance
    say(f"{description}: {done}{of_total}, done in {time.monotonic() - began:.1f} s")
