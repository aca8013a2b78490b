"""Commands ``benchmark run`` and ``benchmark compare``: agents in the same unseen markets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from babylon_rl.cli.benchmark_players import game_of_players, players_named
from babylon_rl.cli.options import GameOfVersionOption, ReportOption
from babylon_rl.cli.output import JsonOption, Table, emit, progress_of_parts, say
from babylon_rl.errors import ModelUnavailable, UsageError
from babylon_rl.evaluation.compare_results import LEVEL, ComparisonDocument, LeftOut, by_agent, compare_results, result_files, sound_results
from babylon_rl.evaluation.html_report import write_report
from babylon_rl.evaluation.metrics import result_id
from babylon_rl.evaluation.play import BenchmarkRuns, benchmark_results, gate_key
from babylon_rl.evaluation.report import AGENTS, CORRECTED, NEEDED, PAIRS
from babylon_rl.evaluation.results import PARTIAL, SUFFIX, Result, record_runs, runs_directory
from babylon_rl.evaluation.snapshots import CONFIRMATION_ID, GATE_ID, Snapshot, benchmark_snapshots, snapshots_named
from babylon_rl.evaluation.statistics.intervals import POWER, markets_needed, spread_of
from babylon_rl.market.simulation.agents import Mandate
from babylon_rl.market.simulation.games import Game, game_asked, game_named
from babylon_rl.settings import load_settings
from babylon_rl.store.benchmarks import played_markets
from babylon_rl.store.columns import document_of
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import migrate, require_migrated

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
    game: GameOfVersionOption = None,
    mandate: Annotated[
        str | None,
        typer.Option(help="Instead of --game. one-tick: a stake for a tick, as policies are trained; free: positions that last."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Instead of --game: a version of the prompt. Default: trader-v1 under one-tick, else trader-v2."),
    ] = None,
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
    """Play snapshots with models and agents. Shows the P&L of each. A stored run is not played again without --again."""
    chosen = _game_chosen(game, mandate, prompt)
    settings = load_settings()
    directory = out if out is not None else settings.home / RESULTS
    with players_named(model, settings, chosen, temperature=temperature, attempts=attempts) as players:
        markets = snapshots_named(snapshots)
        with progress_of_parts() as tell:
            runs = benchmark_results(
                players,
                markets,
                directory,
                repeats=repeats,
                seed=int(seed) if re.fullmatch(r"-?\d+", seed) else seed,
                concurrency=concurrency,
                again=again,
                on_progress=tell,
            )
    if record:
        with open_database(settings, prepare=False) as database:
            migrate(database)
            with database.connect() as connection:
                written = record_runs(connection, runs.files)
        say(f"{written} runs recorded, {len(runs.files) - written} were in the database before.")
    _emit_run(runs, directory, markets, report, as_json)


def _game_chosen(game: str | None, mandate: str | None, prompt: str | None) -> Game | None:
    """The game of that name, or of a mandate and a prompt; None where nothing is asked."""
    if mandate not in (None, *MANDATES):
        raise UsageError(f"--mandate is {mandate!r}: give {' or '.join(MANDATES)}.")
    if game is not None and (mandate, prompt) != (None, None):
        raise UsageError("--game says mandate and prompt: leave out --mandate and --prompt.")
    if game is not None:
        return game_named(game)
    asked: Mandate = "free" if mandate == "free" else "one-tick"
    return None if (mandate, prompt) == (None, None) else game_asked(asked, prompt)


def compare(
    results: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Results directories or files, or names of agents whose results --results holds.")
    ],
    directory: Annotated[
        Path | None, typer.Option("--results", help="Where names are looked up. Default: benchmark-results in the state directory.")
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Names are of versions or base in the gate's markets, played on this machine.")
    ] = False,
    game: GameOfVersionOption = None,
    reference: Annotated[str | None, typer.Option(help="Compare with this agent only. Default: everybody with everybody.")] = None,
    report: ReportOption = None,
    snapshot: Annotated[
        list[str] | None,
        typer.Option("--snapshot", help="As for `run`; for the report, which then shows what was published beside each decision."),
    ] = None,
    effect: Annotated[float | None, typer.Option(min=0.01, help="Dollars a market: also say how many show such a difference.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare agents in the same markets. Paired differences with 95 % intervals, clustered by snapshot."""
    if snapshot and report is None:
        raise UsageError("--snapshot is for the report: give --report DIR too.")
    if gate and directory is not None:
        raise UsageError("--results is for runs of your own: leave it out with --gate.")
    if game is not None and not gate:
        raise UsageError("--game is for the gate's markets: give --gate too.")
    sound, refused = gate_results(results, game_of_players(results, game)) if gate else _named_results(results, directory)
    comparison = compare_results(sound, refused, reference=reference)
    if report is not None:
        write_pages(comparison.runs, report, _played_in(comparison.runs, snapshot or []))
    rows = needed(comparison, effect) if effect is not None else []
    document = comparison.document | ({"needed": rows} if effect is not None else {})
    emit(document, _parts(comparison, rows), as_json)


def _played_in(sound: list[Result], snapshots: list[str]) -> list[Snapshot]:
    """The markets named by ``snapshots``; reports those without a result."""
    if not snapshots:
        return []
    markets, played = snapshots_named(snapshots), {result.snapshot for result in sound}
    other = [market.id for market in markets if market.digest not in played]
    if other:
        say(f"No result is of {', '.join(other[:5])}{' ...' if len(other) > 5 else ''}.")
    return markets


def gate_results(names: Sequence[str], game: Game) -> tuple[list[Result], list[LeftOut]]:
    """The runs behind the rows of models in the gate's markets as they are now, of the weights that played ``game`` last."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        with database.connect(autocommit=True) as connection:
            markets = {name: played_markets(connection, name, GATE_ID) for name in names}
    sound, refused = list[Result](), list[LeftOut]()
    for name, stored in markets.items():
        if not stored:
            raise UsageError(f"{name!r} has not played in the gate's markets: name a version that was compared, or base.")
        played = _of_game(stored, game)
        if not played:
            raise UsageError(f"{name!r} has not played {game.name} in the gate's markets as they are now: --game names another game.")
        ids, directory = {result_id(gate_key(identity, market)) for identity, market in played}, runs_directory(settings.home, name)
        here, not_sound = sound_results(file for file in sorted(directory.glob(f"*{SUFFIX}")) if not file.name.endswith(PARTIAL))
        confirmed = sum(result.benchmark_id.startswith(CONFIRMATION_ID) for result in here)
        if confirmed:
            say(f"{name}: {confirmed} markets of a confirmation are left out: only the confirmation itself counts them.")
        # A market that was played elsewhere since, or with other weights, has another id.
        here = [result for result in here if result.id in ids]
        if len(here) < len(ids):
            say(
                f"{name}: the decisions in {len(ids) - len(here)} of {len(ids)} markets are not on this machine: copy {directory} from the "
                "machine that played, if that is another."
            )
        sound, refused = sound + here, refused + not_sound
    return sound, refused


def _of_game(played: Sequence[tuple[str, str, str]], game: Game) -> list[tuple[str, str]]:
    """Identity and fingerprint of the markets among ``played`` that were played as a game, of the weights that did so last."""
    count = 1 + max(int(snapshot.removeprefix(GATE_ID)) for _, snapshot, _ in played)
    # The game is in a market's fingerprint.
    now = {snapshot.id: snapshot.fingerprint for snapshot in benchmark_snapshots(count, game)}
    found = [(identity, market) for identity, snapshot, market in played if now[snapshot] == market]
    return [(identity, market) for identity, market in found if identity == found[0][0]]


def _named_results(names: list[str], directory: Path | None) -> tuple[list[Result], list[LeftOut]]:
    paths = [path for name in names if (path := Path(name)).exists()]
    # A file that is named twice counts once.
    files = dict.fromkeys(file for path in paths for file in (result_files(path) if path.is_dir() else [path]))
    sound, refused = sound_results(files)
    requested = [name for name in names if not Path(name).exists()]
    if requested:
        more, not_sound = sound_results(result_files(directory or load_settings().home / RESULTS))
        agents = {result.agent_id for result in more}
        missing = [name for name in requested if name not in agents]
        if missing:
            raise UsageError(
                f"{missing[0]!r} is no file or directory, and there are no results of an agent of that name; there are results of "
                f"{', '.join(sorted(agents)) or 'nobody'}. `babylon-rl benchmark run SNAPSHOT --model {missing[0]}` makes them."
            )
        # A result that is named by its file and by its agent counts once.
        ids = {result.id for result in sound}
        named = [result for name in requested for result in more if result.agent_id == name]
        sound += [result for result in named if result.id not in ids]
        refused += [refusal for refusal in not_sound if refusal.agent is None or refusal.agent in requested]
    return sound, refused


def _emit_run(runs: BenchmarkRuns, directory: Path, markets: list[Snapshot], report: Path | None, as_json: bool) -> None:
    sound, refused = sound_results(runs.files)
    comparison = compare_results(sound, refused) if sound else None
    document: dict[str, Any] = comparison.document if comparison is not None else {"runs": [], "comparison": None}
    document |= {"directory": str(directory)} | document_of(runs, "played", "known", "unfinished")
    # Report and tables are written even if some runs are unfinished; the error comes last.
    if report is not None and sound:
        write_pages(sound, report, markets)
    emit(document, _parts(comparison) if comparison is not None else [], as_json)
    say(f"{runs.played} runs played, {runs.known} known from before; they are in {directory}.")
    if runs.unfinished:
        first = runs.unfinished[0]
        partly = f", {sum(run.ticks_processed > 0 for run in runs.unfinished)} of them begun" if len(runs.unfinished) > 1 else ""
        raise ModelUnavailable(
            f"{len(runs.unfinished)} of {len(runs.unfinished) + len(runs.results)} runs are not complete{partly}. {first.agent} in "
            f"{first.benchmark_id}: {first.reason} What was played is kept; run the same command again to go on from there."
        )


def write_pages(sound: list[Result], directory: Path, markets: list[Snapshot]) -> None:
    pages = write_report(sound, directory, {market.digest: market.scenario for market in markets})
    say(f"The report is {pages[0]}.")


def _parts(comparison: ComparisonDocument, rows: Sequence[dict[str, Any]] = ()) -> list[Table | str]:
    same = f"In the same markets, {CORRECTED}" if comparison.analyses > 1 else "In the same markets"
    pairs: list[Table | str] = ["", Table(PAIRS, comparison.pairs, same)] if comparison.pairs else []
    sizes: list[Table | str] = ["", needed_table(rows)] if rows else []
    refused = [f"{refusal.file}: {' '.join(refusal.reasons[:3])}" for refusal in comparison.refused[:5]]
    return [agents_table(comparison), *pairs, *sizes, *comparison.notes, *refused]


def agents_table(comparison: ComparisonDocument) -> Table:
    rows = sorted(comparison.agents, key=lambda agent: -agent.pnl.mean)
    markets = max(agent.snapshots for agent in rows)
    return Table(AGENTS, rows, f"{markets} {'market' if markets == 1 else 'markets'}, mean P&L of one")


def needed(comparison: ComparisonDocument, effect: float) -> list[dict[str, Any]]:
    """For every pair of agents, the snapshots needed to show a difference of ``effect`` dollars.

    With 80 % power, at a confidence shared among all pairs and looks (Bonferroni). Pairs with fewer than two snapshots are left out. One
    row for a single play of each snapshot, and one for as many plays as there were. Null: no number is enough.
    """
    runs, rows = by_agent(comparison.runs), list[dict[str, Any]]()
    for pair in comparison.pairs:
        shared = [key for key in runs[pair.a] if key in runs[pair.b]]
        if pair.snapshots < 2:
            continue
        differences = [runs[pair.a][key].metrics.total_pnl - runs[pair.b][key].metrics.total_pnl for key in shared]
        spread = spread_of(differences, [snapshot for snapshot, _, _ in shared])
        confidence = 1 - LEVEL / len(comparison.pairs) / comparison.analyses
        rows += [
            {"a": pair.a, "b": pair.b, "effect": effect, "between": spread.between, "within": spread.within, "repeats": repeats,
             "snapshots": markets_needed(effect, spread.of_means(repeats), confidence), "power": POWER,
             "played": pair.snapshots}
            for repeats in sorted({1, round(pair.runs / pair.snapshots)})
        ]  # fmt: skip
    return rows


def needed_table(rows: Sequence[dict[str, Any]]) -> Table:
    effect, power = (rows[0]["effect"], rows[0]["power"]) if rows else (0.0, 0.0)
    return Table(NEEDED, rows, f"Snapshots that show a difference of ${effect:,.0f} with {100 * power:.0f} % power")
