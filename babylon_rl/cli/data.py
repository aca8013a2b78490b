"""Read-only commands about hours: windows, episodes, rejected, outcomes, scores.

All but ``scores`` read the game's own tables as they are now, whatever the asset graph has stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from babylon_rl.cli.data_tables import print_episodes, print_outcomes, print_rejected, print_windows
from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.cli.verify_data import verify_data
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.types import count_reasons
from babylon_rl.windows import HOUR, newest_complete, utc_now, window_end, window_of, window_range, window_start

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.judge.groups import GroupScores
    from babylon_rl.store.connection import Connection
    from babylon_rl.types import WindowReading, WindowSummary


FromOption = Annotated[str | None, typer.Option("--from", metavar="WINDOW", help="First hour (inclusive).")]
ToOption = Annotated[str | None, typer.Option("--to", metavar="WINDOW", help="Where to stop (exclusive).")]
LookbackOption = Annotated[
    int | None, typer.Option("--lookback-hours", min=1, max=1_000_000, help="Hours back from the newest complete hour that holds rows.")
]
WindowArgument = Annotated[str, typer.Argument(metavar="WINDOW", help="An hour in UTC, YYYY-MM-DDTHH:00.")]

READY_WINDOWS = 3
READY_AGENTS = 5
AGENT_COUNTS = (2, 3, 5, 8)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("windows")(windows)
    app.command("episodes")(episodes)
    app.command("rejected")(rejected)
    app.command("outcomes")(outcomes)
    app.command("scores")(scores)
    app.command("verify-data")(verify_data)


@dataclass(frozen=True)
class _Session:
    """Database connection, settings and clock of one command."""

    connection: "Connection"
    settings: Settings
    now: datetime


@contextmanager
def _session(settings: Settings) -> Iterator[_Session]:
    from babylon_rl.store.database import open_database

    with open_database(settings, prepare=False) as database, database.connect() as connection:
        yield _Session(connection, settings, utc_now())


def windows(
    first: FromOption = None,
    end: ToOption = None,
    lookback_hours: LookbackOption = None,
    min_agents: Annotated[int | None, typer.Option("--min-agents", min=1, help="Usable episodes that make an hour ready.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What each hour holds, and whether that is enough for a training."""
    settings = load_settings() if min_agents is None else load_settings(min_agents_per_window=min_agents)
    with _session(settings) as session:
        wanted = _wanted(session, first, end, lookback_hours)
        summaries = _summaries(session, wanted)
    document = {
        "windows": [_window_document(facts) for facts in summaries],
        "readyAt": {str(agents): sum(facts.usable_episodes >= agents for facts in summaries) for agents in AGENT_COUNTS},
        "verdict": _verdict(summaries),
    }
    # Remarks go to standard error; the table stays the only output.
    if not summaries:
        say("No trajectory has been recorded in these hours.")

    def render(out: "Console") -> None:
        print_windows(out, summaries)
        out.print(document["verdict"], markup=False)

    emit(document, render, as_json)


def _summaries(session: _Session, wanted: list[str]) -> "list[WindowSummary]":
    from babylon_rl.episodes.reading import read_windows
    from babylon_rl.episodes.summary import summary
    from babylon_rl.store.scores import have_scores, input_versions
    from babylon_rl.store.windows import quarantined

    readings = read_windows(session.connection, wanted, session.settings)
    judged = input_versions(session.connection, wanted) if have_scores(session.connection) else {}
    set_aside = quarantined(session.connection, wanted)
    return [summary(r, session.now, scored=r.window in judged, quarantined=r.window in set_aside) for r in readings.values()]


def _verdict(summaries: "list[WindowSummary]") -> str:
    ready = sum(facts.usable_episodes >= READY_AGENTS for facts in summaries)
    if ready >= READY_WINDOWS:
        return f"READY FOR TRAINING: {ready} windows with {READY_AGENTS}+ agents."
    return f"Not ready: {ready} of {READY_WINDOWS} windows with {READY_AGENTS}+ agents."


def _window_document(facts: "WindowSummary") -> dict[str, object]:
    return {
        "window": facts.window,
        "rows": facts.rows,
        "eligible": facts.eligible,
        "newTrainable": facts.new_trainable,
        "rejected": facts.rejected,
        "agents": facts.agents,
        "episodes": facts.episodes,
        "usableEpisodes": facts.usable_episodes,
        "ready": facts.ready,
        "state": facts.state,
        "messageSources": facts.message_sources,
        "avgPnl": facts.avg_pnl,
        "trainableSequences": facts.trainable_sequences,
        "quality": msgspec.to_builtins(facts.quality),
    }


def episodes(window: WindowArgument, as_json: JsonOption = False) -> None:
    """The stitched episodes of an hour."""
    from babylon_rl.episodes.reading import read_window

    window_start(window)
    with _session(load_settings()) as session:
        refuse_future(window, session.now)
        reading = read_window(session.connection, window, session.settings, texts=False)
        _say_when_running(window, session.now)
    _say_when_empty(reading)
    shown = [
        {
            "agentId": e.agent_id,
            "trajectoryIds": list(e.trajectory_ids),
            "steps": e.steps,
            "startPnl": e.start_pnl,
            "endPnl": e.end_pnl,
            "windowPnl": e.window_pnl,
            "wins": e.wins,
            "losses": e.losses,
            "winRate": e.win_rate,
            "trades": e.trades,
            "posts": e.posts,
            "messageSources": e.message_sources,
            "usable": e.usable,
            "used": e.used,
            "actions": e.actions,
            "trainableSequences": e.trainable_sequences,
        }
        for e in reading.episodes
    ]
    emit({"window": window, "episodes": shown}, lambda out: print_episodes(out, reading), as_json)


def _say_when_running(window: str, now: datetime) -> None:
    if window_end(window) > now:
        say(f"{window} has not ended; this is how it stands.")


def _say_when_empty(reading: "WindowReading") -> None:
    if not reading.rows:
        say(f"No trajectory has been recorded in {reading.window}.")
    elif not reading.episodes:
        say(f"None of the {reading.rows} trajectories in {reading.window} counts; `babylon-rl rejected` says why.")


def rejected(first: FromOption = None, end: ToOption = None, as_json: JsonOption = False) -> None:
    """Every trajectory that does not count, and why."""
    from babylon_rl.episodes.reading import read_windows

    with _session(load_settings()) as session:
        readings = read_windows(session.connection, _wanted(session, first, end, None), session.settings)
    rejections = [rejection for reading in readings.values() for rejection in reading.rejections]
    if not rejections:
        say("No trajectory was rejected in these hours." if readings else "No trajectory has been recorded in these hours.")
    shown = [{"trajectoryId": r.trajectory_id, "window": r.window, "reason": r.reason, "detail": r.detail} for r in rejections]
    rows = sum(reading.rows for reading in readings.values())
    emit(
        {"rejected": shown, "rows": rows, "byReason": count_reasons(rejections)}, lambda out: print_rejected(out, rejections, rows), as_json
    )


def outcomes(window: WindowArgument, as_json: JsonOption = False) -> None:
    """What happened in the market of an hour."""
    from babylon_rl.market.outcomes import read_outcomes

    window_start(window)
    with _session(load_settings()) as session:
        refuse_future(window, session.now)
        market = read_outcomes(session.connection, window, session.settings)
        _say_when_running(window, session.now)
    if not market.stocks and not market.predictions:
        say(f"Neither a price nor an event has been recorded in {window}.")
    emit(market.document(), lambda out: print_outcomes(out, market), as_json)


def scores(window: WindowArgument, as_json: JsonOption = False) -> None:
    """The scores of an hour's group, as they were judged."""
    from babylon_rl.judge.scoring import stored_scores

    window_start(window)
    with _session(load_settings()) as session:
        refuse_future(window, session.now)
        group = stored_scores(session.connection, [window]).get(window)
        why = _why_unscored(session.connection, window) if group is None else ""
    if group is None:
        say(f"{window} has no scores. {why}")
        # The same keys as with scores, so that scripts need no second shape.
        nothing = {
            "window": window,
            "judge": None,
            "groupSize": 0,
            "mean": None,
            "spread": None,
            "disagreement": None,
            "scores": list[str](),
        }
        emit(nothing, lambda _: None, as_json)
        return
    rows = [[s.rank, s.agent_id, round(s.score, 4), round(s.advantage, 3), s.reasoning] for s in group.scores]

    def render(out: "Console") -> None:
        out.print(table(None, ["rank", "agent", "score", "advantage", "reasoning"], rows))
        noted = "" if group.has_spread else " No spread: the group carries no signal and does not train."
        out.print(
            f"Judged by {group.judge}, version {group.judge_version}: mean {group.mean:.4f}, spread {group.spread:.4f}.{noted}",
            markup=False,
        )
        for sentence in _judgement_sentences(group):
            out.print(sentence, markup=False)

    emit(group.document(), render, as_json)


def _why_unscored(connection: "Connection", window: str) -> str:
    from babylon_rl.store.scores import have_scores, read_pending, read_quarantined

    if have_scores(connection):
        # The most specific reason first: pending, then quarantined, then not judged yet.
        if reason := read_pending(connection, [window]).get(window):
            return f"It waits: {reason}"
        if aside := read_quarantined(connection, [window]).get(window):
            return f"It is in quarantine: {aside.reason} `babylon-rl judge retry {window}` asks again."
    return f"Run `babylon-rl score --window {window}`; `babylon-rl windows` says whether it has a group."


def _judgement_sentences(found: "GroupScores") -> list[str]:
    """How a language model came to the scores, and suspicious texts; [] for the heuristic."""
    how = found.judgement
    if how is None:
        return []
    tau = "" if how.tau is None else f", Kendall's tau {how.tau:.2f}"
    price = "an unknown price" if how.usd is None else f"${how.usd:.4f}"
    said = [f"{how.orders} orders: mean difference {found.disagreement:.3f}{tau}. {how.requests} requests for {price}."]
    if how.masked is not None:
        counts = "count" if how.masked else "do not count, as they differ by no more than two orders do"
        said.append(f"The scores with flagged passages masked {counts} (noise {how.noise or 0.0:.3f}).")
    said += [f"context: {flag}" for flag in how.context_flags]
    said += [f"{score.agent_id} gained {score.gain:+.3f} by flagged passages." for score in found.scores if score.gain]
    return [*said, *(f"{score.agent_id}: {flag}" for score in found.scores for flag in score.flags)]


def _wanted(session: _Session, first: str | None, end: str | None, lookback_hours: int | None) -> list[str]:
    """The requested hours that hold rows."""
    from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, newest_window_with_rows, windows_with_rows

    if lookback_hours is not None and (first is not None or end is not None):
        raise UsageError("Give --from and --to, or --lookback-hours, not both.")
    if first is not None and end is not None:
        next(window_range(first, end), None)
    if first is not None:
        refuse_future(first, session.now)
    # The look-back ends with the newest complete hour that holds rows, not with now.
    if lookback_hours is not None:
        newest = newest_window_with_rows(session.connection, newest_complete(session.now))
        if newest is None:
            return []
        end = window_of(window_end(newest))
        first = window_of(window_end(newest) - lookback_hours * HOUR)
    for edge in (first, end):
        if edge is not None:
            window_start(edge)
    return windows_with_rows(session.connection, first or FIRST_POSSIBLE, end or LAST_POSSIBLE)


def refuse_future(window: str, now: datetime) -> None:
    """Raise UsageError for an hour that has not begun."""
    if window_start(window) > now:
        raise UsageError(f"{window} lies in the future: it is {window_of(now)} now, in UTC.")
