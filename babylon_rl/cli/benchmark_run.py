"""Commands ``benchmark run`` and ``benchmark compare``: agents in the same unseen markets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.benchmark_needed import needed, needed_table
from babylon_rl.cli.benchmark_tables import agents_table, pairs_table
from babylon_rl.cli.options import ReportOption
from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, say
from babylon_rl.errors import ModelUnavailable, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.evaluation.compare_results import ComparisonDocument, LeftOut
    from babylon_rl.evaluation.play import BenchmarkRuns
    from babylon_rl.evaluation.results import Result
    from babylon_rl.evaluation.snapshots import Snapshot
    from babylon_rl.market.simulation.agents import Mandate

RESULTS = "benchmark-results"
MANDATES = ("one-tick", "free")


def run(
    snapshots: Annotated[
        list[str], typer.Argument(metavar="SNAPSHOT...", help="Files of `benchmark generate` or the game's, or preset:quick:seeds=1-24.")
    ],
    model: Annotated[
        list[str],
        typer.Option("--model", help="A version, base, an agent (nothing, balanced, oracle...) or NAME=URL of any endpoint; repeatable."),
    ],
    repeats: Annotated[int, typer.Option(min=1, help="How often each plays each snapshot, with other seeds.")] = 1,
    seed: Annotated[str, typer.Option(help="Of the repeats; a number or a text.")] = "0",
    mandate: Annotated[
        str, typer.Option(help="one-tick: a stake for a tick, as policies are trained; free: positions that last.")
    ] = "one-tick",
    prompt: Annotated[str | None, typer.Option(help="A version of the prompt. Default: trader-v1 under one-tick, else trader-v2.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of models.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Runs of models at once.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of a request to an endpoint of yours before it counts as down.")] = 6,
    out: Annotated[Path | None, typer.Option(help="The results directory. Default: benchmark-results in the state directory.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Play runs that are kept anew: an endpoint may serve other weights under the same name.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="Also write the runs to the database, marked as evaluation.")] = False,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play snapshots with models and agents, and say what each earned; a run that is kept is not played again, but by --again."""
    from babylon_rl.cli.benchmark_players import players_named
    from babylon_rl.evaluation.play import run_benchmark
    from babylon_rl.evaluation.snapshots import snapshots_named
    from babylon_rl.settings import load_settings

    if mandate not in MANDATES:
        raise UsageError(f"--mandate is {mandate!r}: give {' or '.join(MANDATES)}.")
    settings = load_settings()
    directory = out if out is not None else settings.home / RESULTS
    chosen: Mandate = "free" if mandate == "free" else "one-tick"
    with players_named(model, settings, chosen, temperature=temperature, prompt=prompt, attempts=attempts) as players:
        markets = snapshots_named(snapshots)
        with progress_of_parts() as tell:
            runs = run_benchmark(
                players,
                markets,
                directory,
                repeats=repeats,
                seed=int(seed) if re.fullmatch(r"-?\d+", seed) else seed,
                concurrency=concurrency,
                again=again,
                on_progress=tell,
            )
    # Runs are kept as files first; the database is optional.
    if record:
        _record(runs.files)
    _emit_run(runs, directory, markets, report, as_json)


def compare(
    results: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Results directories or files, or names of agents whose results --results holds.")
    ],
    directory: Annotated[
        Path | None, typer.Option("--results", help="Where names are looked up. Default: benchmark-results in the state directory.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Compare with this agent only. Default: everybody with everybody.")] = None,
    report: ReportOption = None,
    snapshot: Annotated[
        list[str] | None,
        typer.Option("--snapshot", help="As for `run`; for the report, which then shows what was published beside each decision."),
    ] = None,
    effect: Annotated[float | None, typer.Option(min=0.01, help="Dollars a market: also say how many show such a difference.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare agents by the runs that they share: paired differences with 95 % intervals, clustered by snapshot."""
    from babylon_rl.evaluation.compare_results import compare_results

    if snapshot and report is None:
        raise UsageError("--snapshot is for the report: give --report DIR too.")
    sound, refused = _named_results(results, directory)
    comparison = compare_results(sound, refused, reference=reference)
    if report is not None:
        _write_report(comparison.runs, report, _played_in(comparison.runs, snapshot or []))
    rows = needed(comparison, effect) if effect is not None else []
    document = comparison.document | ({"needed": rows} if effect is not None else {})
    emit(document, lambda out: _render(out, comparison, rows), as_json)


def _played_in(sound: "list[Result]", snapshots: list[str]) -> "list[Snapshot]":
    """The markets named by ``snapshots``; reports those without a result."""
    if not snapshots:
        return []
    from babylon_rl.evaluation.snapshots import snapshots_named

    markets, played = snapshots_named(snapshots), {result.snapshot for result in sound}
    other = [market.id for market in markets if market.digest not in played]
    if other:
        say(f"No result is of {', '.join(other[:5])}{' ...' if len(other) > 5 else ''}.")
    return markets


def _named_results(names: list[str], directory: Path | None) -> "tuple[list[Result], list[LeftOut]]":
    from babylon_rl.evaluation.compare_results import result_files, sound_results

    paths = [path for name in names if (path := Path(name)).exists()]
    files = dict.fromkeys(file for path in paths for file in (result_files(path) if path.is_dir() else [path]))
    sound, refused = sound_results(files)
    # Names that are no paths are agents in the results directory.
    wanted = [name for name in names if not Path(name).exists()]
    if wanted:
        more, not_sound = sound_results(result_files(_results_directory(directory)))
        agents = {result.agent_id for result in more}
        missing = [name for name in wanted if name not in agents]
        if missing:
            raise UsageError(
                f"{missing[0]!r} is no file or directory, and there are no results of an agent of that name; there are results of "
                f"{', '.join(sorted(agents)) or 'nobody'}. `babylon-rl benchmark run SNAPSHOT --model {missing[0]}` makes them."
            )
        kept = {result.id for result in sound}
        named = [result for name in wanted for result in more if result.agent_id == name]
        sound += [result for result in named if result.id not in kept]
        refused += [one for one in not_sound if one.agent is None or one.agent in wanted]
    return sound, refused


def _results_directory(given: Path | None) -> Path:
    from babylon_rl.settings import load_settings

    return given if given is not None else load_settings().home / RESULTS


def _emit_run(runs: "BenchmarkRuns", directory: Path, markets: "list[Snapshot]", report: Path | None, as_json: bool) -> None:
    from babylon_rl.evaluation.compare_results import compare_results, sound_results

    sound, refused = sound_results(runs.files)
    comparison = compare_results(sound, refused) if sound else None
    document: dict[str, Any] = comparison.document if comparison is not None else {"runs": [], "comparison": None}
    document |= {
        "directory": str(directory),
        "played": runs.played,
        "known": runs.known,
        "unfinished": [
            {"agent": one.agent, "benchmarkId": one.snapshot, "repeat": one.repeat, "ticksProcessed": one.ticks_played, "ticks": one.ticks,
             "reason": one.reason}
            for one in runs.unfinished
        ],
    }  # fmt: skip
    # Report and tables are written even if some runs are unfinished; the error comes last.
    if report is not None and sound:
        _write_report(sound, report, markets)
    emit(document, lambda out: _render(out, comparison) if comparison is not None else None, as_json)
    say(f"{runs.played} runs played, {runs.known} known from before; they are in {directory}.")
    if runs.unfinished:
        first = runs.unfinished[0]
        partly = f", {sum(one.ticks_played > 0 for one in runs.unfinished)} of them begun" if len(runs.unfinished) > 1 else ""
        raise ModelUnavailable(
            f"{len(runs.unfinished)} of {len(runs.unfinished) + len(runs.results)} runs are not complete{partly}. {first.agent} in "
            f"{first.snapshot}: {first.reason} What was played is kept; run the same command again to go on from there."
        )


def _write_report(sound: "list[Result]", directory: Path, markets: "list[Snapshot]") -> None:
    from babylon_rl.evaluation.html_report import write_report

    pages = write_report(sound, directory, {market.digest: market.scenario for market in markets})
    say(f"The report is {pages[0]}.")


def _record(files: list[Path]) -> None:
    from babylon_rl.evaluation.run_files import record_runs
    from babylon_rl.settings import load_settings
    from babylon_rl.store.database import open_database
    from babylon_rl.store.migrate import migrate

    with open_database(load_settings(), prepare=False) as database:
        migrate(database)
        with database.connect() as connection:
            written = record_runs(connection, files)
    say(f"{written} runs recorded, {len(files) - written} were in the database before.")


def _render(out: "Console", comparison: "ComparisonDocument", rows: Sequence[dict[str, Any]] = ()) -> None:
    out.print(agents_table(comparison))
    if comparison.pairs:
        out.print()
        out.print(pairs_table(comparison))
    if rows:
        out.print()
        out.print(needed_table(rows))
    for note in comparison.notes:
        out.print(note, markup=False)
    for one in comparison.refused[:5]:
        out.print(f"{one.file}: {' '.join(one.reasons[:3])}", markup=False)
