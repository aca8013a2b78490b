"""Command `score`: judges groups through the asset graph, or estimates the cost."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.options import FromOption, ToOption, pinned_windows
from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.cli.training import SEE_WINDOWS, bring_up_to_date
from babylon_rl.errors import JudgeUnavailable, UsageError
from babylon_rl.settings import HEURISTIC, Settings, load_settings
from babylon_rl.windows import utc_now, window_end, window_of

if TYPE_CHECKING:
    from babylon_rl.judge.cost import HourCost
    from babylon_rl.store.connection import Connection
    from babylon_rl.store.database import Database


Span = tuple[str, str] | None


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("score")(score)


def score(
    window: Annotated[str | None, typer.Option("--window", metavar="WINDOW", help="One hour.")] = None,
    first: FromOption = None,
    end: ToOption = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A litellm model name, or heuristic. Unset: JUDGE_MODEL.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Judge again what has scores or is in quarantine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be judged and what it would cost.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge the groups of some hours (default: the look-back) that lack scores of this judge. Exit code 3 where some wait.

    A group in quarantine fails nothing: it is said, and the exit code is 0.
    """
    from babylon_rl.store.database import open_database

    settings = load_settings() if judge is None else load_settings(judge_model=judge)
    if window is not None and (first is not None or end is not None):
        raise UsageError("Give --window, or --from and --to, not both.")
    if window is not None:
        first, end = window, window_of(window_end(window))
    wanted = pinned_windows(settings, first, end)
    with open_database(settings) as database:
        if dry_run:
            _say_cost(database, settings, wanted, force, as_json)
            return
        held, lacking = _judge(database, settings, wanted, force)
        _show(database, settings, held, lacking, as_json)


def _judge(database: "Database", settings: Settings, wanted: Span, force: bool) -> tuple[list[str], list[str]]:
    """Judge what lacks scores; return all requested hours, and those that lacked scores."""
    from babylon_rl.automation.launch import run_hours
    from babylon_rl.judge.client import judge_addresses
    from babylon_rl.judge.scoring import score_windows

    now = utc_now()
    with database.connect(autocommit=True) as connection:
        held = bring_up_to_date(database, connection, settings, now, wanted)
        # Hours to judge: all with --force, else those without scores of this judge or with changed sources.
        lacking = recorded = held if force else _lacking(connection, held, settings)
        if lacking and (asked := judge_addresses(settings, settings.judge_model)):
            say(f"Judged by {asked}.")
        if force:
            pending = score_windows(connection, held, settings, now, force=True).pending
            recorded = [window for window in held if window not in pending]  # the run below records what this wrote
    if recorded:
        run_hours(database, settings, recorded, ["scored_groups"])
    return held, lacking


def _lacking(connection: "Connection", held: list[str], settings: Settings) -> list[str]:
    from babylon_rl.store.scores import unscored_windows, windows_not_by

    if settings.judge_model == HEURISTIC:
        return sorted(unscored_windows(connection, held))
    from babylon_rl.judge.plan import judge_version, outdated_inputs

    others = windows_not_by(connection, held, settings.judge_model, judge_version(settings))
    return sorted(others | outdated_inputs(connection, held, settings).keys())


def _show(database: "Database", settings: Settings, held: list[str], lacking: list[str], as_json: bool) -> None:
    from babylon_rl.cli.score_outcomes import COLUMNS, read_outcomes, sentences
    from babylon_rl.judge.groups import scores_document

    with database.connect(autocommit=True) as connection:
        hours = read_outcomes(connection, held, frozenset(lacking), settings)
    if not hours:
        say(f"No hour here has a group to judge. {SEE_WINDOWS}")
    for sentence in sentences(hours, settings.judge_model):
        say(sentence)
    pending = {hour.window: hour.reason for hour in hours if hour.outcome == "waiting"}
    document = {
        "windows": [scores_document(hour.scores) for hour in hours if hour.scores is not None],
        "hours": [hour.document() for hour in hours],
        "pending": [{"window": window, "reason": reason} for window, reason in pending.items()],
        "quarantined": [{"window": hour.window, "reason": hour.reason} for hour in hours if hour.outcome == "quarantined"],
    }
    emit(document, lambda out: out.print(table(None, list(COLUMNS), [hour.row() for hour in hours])), as_json)
    # The results are printed first, then waiting hours become the exit code.
    if pending:
        window, reason = next(iter(pending.items()))
        number = "1 hour waits and is" if len(pending) == 1 else f"{len(pending)} hours wait and are"
        raise JudgeUnavailable(f"{number} not judged by {settings.judge_model}, the first {window}: {reason} The others are written.")


def _say_cost(database: "Database", settings: Settings, wanted: Span, force: bool, as_json: bool) -> None:
    from babylon_rl.store.trajectories import windows_with_rows
    from babylon_rl.training.freezing import freeze_bounds

    now = utc_now()
    with database.connect(autocommit=True) as connection:
        bounds = freeze_bounds(connection, settings, now, wanted)
        held = [window for window in windows_with_rows(connection, bounds.first, bounds.end) if window <= bounds.complete]
        lacking = held if force else _lacking(connection, held, settings)
        if settings.judge_model == HEURISTIC:
            # The heuristic asks no model: there is nothing to estimate.
            document = {"windows": lacking, "judge": settings.judge_model, "requests": 0, "usd": 0.0}
            sentence = f"{len(lacking)} hours would be judged by the {HEURISTIC}, at no cost: {', '.join(lacking) or 'none'}"
            emit(document, lambda out: out.print(sentence, markup=False), as_json)
            return
        from babylon_rl.judge.cost import estimate_hours

        _print_cost(settings, estimate_hours(connection, lacking, settings, force=force), as_json)


def _print_cost(settings: Settings, hours: "list[HourCost]", as_json: bool) -> None:
    from babylon_rl.judge.cost import total_of

    # Two estimates: the fewest requests, and the most if orders disagree and answers are unusable.
    whole = total_of(hours)
    document = {
        "windows": [hour.window for hour in hours],
        "judge": settings.judge_model,
        "requests": whole.requests,
        "cached": whole.cached,
        "promptTokens": whole.prompt_tokens,
        "completionTokens": whole.completion_tokens,
        "usd": whole.usd,
        "requestsMost": whole.most_requests,
        "usdMost": whole.most_usd,
        "hours": [hour.document() for hour in hours],
    }
    price = "at a price that no table knows" if whole.usd is None else f"for about {_dollars(whole)}"
    rows: list[list[Any]] = [[h.window, h.episodes, h.requests, h.cached, h.prompt_tokens, h.completion_tokens, _dollars(h)] for h in hours]

    def render(out: Any) -> None:
        out.print(table(None, ["window", "agents", "requests", "cached", "tokens in", "tokens out, about", "$"], rows))
        out.print(
            f"{len(hours)} hours would take {whole.requests} to {whole.most_requests} requests to {settings.judge_model} ({whole.cached} "
            f"more are answered), {whole.prompt_tokens} tokens in and about {whole.completion_tokens} out for the fewest, {price}. "
            "The most are asked where all orders disagree and answers are as often unusable as so far.",
            markup=False,
        )

    emit(document, render, as_json)


def _dollars(cost: "HourCost") -> str:
    return "?" if cost.usd is None or cost.most_usd is None else f"${cost.usd:.4f} to ${cost.most_usd:.4f}"
