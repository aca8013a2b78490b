"""Command `score`: judges groups through the asset graph, or estimates the cost."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from babylon_rl.cli.options import FromOption, ToOption, pinned_windows
from babylon_rl.cli.output import JsonOption, emit, listed, say
from babylon_rl.cli.training_batches import read_new_hours, recorded_hours
from babylon_rl.errors import JudgeUnavailable, UsageError
from babylon_rl.judge.client import judge_addresses
from babylon_rl.judge.consensus import scores_document
from babylon_rl.judge.cost import HourCost, estimate_hours, total_of
from babylon_rl.judge.plan import Change, find_changes
from babylon_rl.judge.prompt.templates import judge_version
from babylon_rl.judge.scoring import score_windows, stored_scores
from babylon_rl.settings import HEURISTIC, Settings, load_settings
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.scores import read_pending, read_quarantined, unscored_windows
from babylon_rl.training.freezing import drop_before_judging
from babylon_rl.types import GroupScores
from babylon_rl.windows import next_window, utc_now

app = typer.Typer()
Span = tuple[str, str] | None
Outcome = Literal["judged", "unchanged", "waiting", "quarantined"]
COLUMNS = ("window", "came to", "judge", "agents", "mean", "spread", "best")


@app.command("score")
def score(
    window: Annotated[str | None, typer.Option("--window", metavar="WINDOW", help="One hour.")] = None,
    first: FromOption = None,
    end: ToOption = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A litellm model name, or heuristic. Unset: JUDGE_MODEL.")] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Judge anew what a change of rule, rubric, setting or judge made stale (--judge says so too).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Judge again what has scores or is in quarantine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be judged and what it would cost.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge groups without scores, or with changed data.

    Exit code 3 where some wait. A group in quarantine fails nothing: it is reported, and the exit code is 0.
    """
    settings = load_settings() if judge is None else load_settings(judge_model=judge)
    if window is not None:
        if first is not None or end is not None:
            raise UsageError("Give --window, or --from and --to, not both.")
        first, end = window, next_window(window)
    span, stale = pinned_windows(settings, first, end), stale or judge is not None
    with open_database(settings) as database:
        if dry_run:
            _say_cost(database, settings, span, force, stale, as_json)
        else:
            held, lacking = _judge(database, settings, span, force, stale, drops=judge is None)
            _show(database, settings, held, lacking, as_json)


def _judge(database: Database, settings: Settings, span: Span, force: bool, stale: bool, drops: bool) -> tuple[list[str], list[str]]:
    """Judge hours without current scores; return all requested hours, and those judged.

    ``drops``: dropout is decided first. A judge that is tried once decides nothing for later batches.
    """
    from babylon_rl.automation.launch import refuse_impossible, run_hours

    now = utc_now()
    with database.connect(autocommit=True) as connection:
        held = read_new_hours(database, connection, settings, now, span)
        # Hours to judge: all with --force, else those without scores or with changed data, and with --stale by changed rules.
        lacking = recorded = held if force else _lacking(connection, held, settings, stale)
        # Before anything is paid: the run that records the scores has to have these hours.
        refuse_impossible(lacking, now)
        if lacking and (addresses := judge_addresses(settings, settings.judge_model)):
            say(f"Judged by {addresses}.")
        if force or stale:
            if drops:
                drop_before_judging(connection, lacking, settings, now)
            pending = score_windows(connection, lacking, settings, now, force=force, stale=stale).pending
            recorded = [window for window in lacking if window not in pending]  # the run below records what this wrote
    if recorded:
        run_hours(database, settings, recorded, ["scored_groups"])
    return held, lacking


def _lacking(connection: Connection, held: list[str], settings: Settings, stale: bool = False) -> list[str]:
    # The heuristic follows its own rules for nothing.
    free = {window for window, group in stored_scores(connection, held).items() if group.judge == HEURISTIC == settings.judge_model}
    changed = {
        window
        for window, (change, _) in find_changes(connection, held, settings).items()
        if change is Change.DATA or (change is Change.RULES and (stale or window in free))
    }
    return sorted(unscored_windows(connection, held) | changed)


def _show(database: Database, settings: Settings, held: list[str], lacking: list[str], as_json: bool) -> None:
    with database.connect(autocommit=True) as connection:
        hours = read_outcomes(connection, held, frozenset(lacking), settings)
    if not hours:
        say("No hour here has a group to judge. `babylon-rl windows` shows what each hour holds; --from and --to choose others.")
    say(*sentences(hours, settings.judge_model))
    pending = [{"window": hour.window, "reason": hour.reason} for hour in hours if hour.outcome == "waiting"]
    document = {
        "windows": [scores_document(hour.scores) for hour in hours if hour.scores is not None],
        "hours": [document_of(hour, "window", "outcome", "kept_scores_of", "reason") for hour in hours],
        "pending": pending,
        "quarantined": [{"window": hour.window, "reason": hour.reason} for hour in hours if hour.outcome == "quarantined"],
    }
    emit(document, [listed(list(COLUMNS), [hour.row() for hour in hours])], as_json)
    if pending:
        number = "1 hour waits and is" if len(pending) == 1 else f"{len(pending)} hours wait and are"
        first = f"the first {pending[0]['window']}: {pending[0]['reason']}"
        raise JudgeUnavailable(f"{number} not judged by {settings.judge_model}, {first} The others are written.")


def _say_cost(database: Database, settings: Settings, span: Span, force: bool, stale: bool, as_json: bool) -> None:
    with database.connect(autocommit=True) as connection:
        held = recorded_hours(connection, settings, utc_now(), span)
        lacking = held if force else _lacking(connection, held, settings, stale)
        if settings.judge_model == HEURISTIC:
            document = {"windows": lacking, "judge": settings.judge_model, "requests": 0, "usd": 0.0}
            sentence = f"{len(lacking)} hours would be judged by the {HEURISTIC}, at no cost: {', '.join(lacking) or 'none'}"
            emit(document, [sentence], as_json)
            return
        hours = estimate_hours(connection, lacking, settings, force=force, stale=stale)
    whole = total_of(hours)
    document = {
        "windows": [hour.window for hour in hours],
        "judge": settings.judge_model,
        **document_of(whole, "requests", "cached", "prompt_tokens", "completion_tokens", "usd", "requests_most", "usd_most"),
        "hours": [document_of(hour) for hour in hours],
    }
    price = "at a price that no table knows" if whole.usd is None else f"for about {_dollars(whole)}"
    rows: list[list[Any]] = [[h.window, h.agents, h.requests, h.cached, h.prompt_tokens, h.completion_tokens, _dollars(h)] for h in hours]
    columns = ["window", "agents", "requests", "cached", "tokens in", "tokens out, about", "$"]
    total = (
        f"{len(hours)} hours would take {whole.requests} to {whole.requests_most} requests to {settings.judge_model} ({whole.cached} "
        f"more are answered), {whole.prompt_tokens} tokens in and about {whole.completion_tokens} out for the fewest, {price}. "
        "The most are asked where all orders disagree and answers are as often unusable as so far."
    )
    emit(document, [listed(columns, rows), total], as_json)


def _dollars(cost: HourCost) -> str:
    return "?" if cost.usd is None or cost.usd_most is None else f"${cost.usd:.4f} to ${cost.usd_most:.4f}"


@dataclass(frozen=True)
class HourOutcome:
    """One hour after a scoring by ``asked``. ``scores`` are its present scores, of any judge; None without any."""

    window: str
    outcome: Outcome
    asked: str
    scores: GroupScores | None
    reason: str | None = None

    @property
    def kept_scores_of(self) -> str | None:
        """The judge of scores that are not from this call."""
        return None if self.scores is None or self.outcome == "judged" else self.scores.judge

    @property
    def words(self) -> str:
        if self.outcome == "judged":
            return "judged now"
        if self.outcome == "unchanged":
            return "unchanged" if self.kept_scores_of == self.asked else "unchanged, by another judge"
        return f"{self.outcome}, no scores" if self.scores is None else f"{self.outcome}, keeps earlier scores"

    def row(self) -> list[Any]:
        held = self.scores
        facts = [held.judge, held.group_size, round(held.mean, 4), round(held.spread, 4), held.scores[0].agent_id] if held else [None] * 5
        return [self.window, self.words, *facts]


def read_outcomes(connection: Connection, windows: Sequence[str], lacking: Collection[str], settings: Settings) -> list[HourOutcome]:
    """Results of the judge of ``settings`` for some hours.

    ``lacking`` are the hours that were to be judged. Hours without a group are absent.
    """
    judge = settings.judge_model
    groups = stored_scores(connection, windows)
    waiting = {window: hour.reason for window, hour in read_pending(connection, sorted(lacking), judge).items()}
    # A quarantine by another version of this judge does not stand in the way of a judgement now.
    by = (judge, judge_version(settings))
    aside = {q.window: q.reason for q in read_quarantined(connection, sorted(lacking)).values() if (q.judge, q.judge_version) == by}
    results = []
    for window in windows:
        scores = groups.get(window)
        if (reason := aside.get(window, waiting.get(window))) is not None:
            results.append(HourOutcome(window, "quarantined" if window in aside else "waiting", judge, scores, reason))
        elif scores is not None:
            fresh = window in lacking and scores.judge == judge
            results.append(HourOutcome(window, "judged" if fresh else "unchanged", judge, scores))
    return results


def sentences(outcomes: Sequence[HourOutcome], judge: str) -> list[str]:
    """Remarks beside the table: hours that the judge did not score, and advice."""
    remarks = []
    aside = [entry for entry in outcomes if entry.outcome == "quarantined"]
    if aside:
        advice = "`babylon-rl judge quarantine` shows the answers, `babylon-rl judge retry` asks again."
        named = ", ".join(entry.window for entry in aside)
        remarks.append(f"In quarantine, not scored by {judge}: {named}. The last because: {aside[-1].reason} {advice}")
    kept = [
        f"{entry.window} those of {entry.kept_scores_of}" for entry in outcomes if entry.reason is not None and entry.scores is not None
    ]
    if kept:
        remarks.append(f"Scores that {judge} did not replace are kept: {', '.join(kept)}.")
    others = [entry.window for entry in outcomes if entry.outcome == "unchanged" and entry.kept_scores_of != judge]
    if others:
        remarks.append(
            f"Scores of another judge than {judge} stand: {', '.join(others)}. --stale judges them anew, --stale --dry-run says the price."
        )
    return remarks
