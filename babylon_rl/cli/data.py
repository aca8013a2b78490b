"""Read-only commands about hours: windows, episodes, rejected, outcomes, scores.

All but ``scores`` read the game's own tables as they are now, whatever the asset graph has stored.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.options import FromOption, ToOption, WindowArgument, refuse_future
from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed, progress_of_parts, say
from babylon_rl.episodes.quality import unmatched_sentence
from babylon_rl.episodes.reading import read_window, read_windows, summary
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.scores import have_scores, input_versions, read_pending, read_quarantined
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, newest_window_with_rows, windows_with_rows
from babylon_rl.store.windows import quarantined, reading_chunks
from babylon_rl.types import GroupScores, Rejection, WindowReading, WindowSummary, count_reasons
from babylon_rl.windows import HOUR, newest_complete, utc_now, window_end, window_of, window_range

if TYPE_CHECKING:
    from babylon_rl.market.outcomes import WindowOutcomes

app = typer.Typer()
READY_WINDOWS = 3
READY_AGENTS = 5
AGENT_COUNTS = (2, 3, 5, 8)
NEWS_SHOWN = 3

WINDOWS = (
    Column("window", "window"),
    Column("state", "state"),
    Column("rows", "rows"),
    Column("new", "newTrainable"),
    Column("rejected", lambda row: row["rows"] - row["eligible"]),
    Column("agents", "agents"),
    Column("usable", "usableEpisodes"),
    Column("embedded", lambda row: row["messageSources"]["embedded"], wide=True),
    Column("logs", lambda row: row["messageSources"]["llm_call_logs"], wide=True),
    Column("synthetic", lambda row: row["messageSources"]["synthetic"], wide=True),
    Column("mean P&L $", "avgPnl", 2),
)
EPISODES = (
    Column("agent", "agentId"),
    Column("rows", lambda row: len(row["trajectoryIds"])),
    Column("steps", "steps"),
    Column("start $", "startPnl", 2, wide=True),
    Column("end $", "endPnl", 2, wide=True),
    Column("P&L $", "windowPnl", 2),
    Column("wins", "wins"),
    Column("losses", "losses"),
    Column("trades", "trades"),
    Column("posts", "posts"),
    Column("to train", "trainableSequences", wide=True),
    Column("usable", lambda row: "yes" if row["usable"] else "no"),
)
REJECTED = (Column("window", "window"), Column("trajectory", "trajectoryId"), Column("reason", "reason"), Column("detail", "detail"))
SCORES = (
    Column("rank", "rank"),
    Column("agent", "agentId"),
    Column("score", "score", 4),
    Column("advantage", "advantage", 3),
    Column("reasoning", "reasoning"),
)
STOCKS = (
    Column("ticker", "ticker"),
    Column("name", "name"),
    Column("start $", "start_price", 2),
    Column("end $", "end_price", 2),
    Column("change %", "change_percent", 2),
    Column("sentiment", "sentiment"),
    Column("news", lambda row: len(row.news)),
)
QUESTIONS = (
    Column("no.", "question_number"),
    Column("question", "question"),
    Column("start", "start_probability", 4),
    Column("end", "end_probability", 4),
    Column("outcome", "outcome"),
    Column("news", lambda row: len(row.news)),
)


@app.command("windows")
def windows(
    first: FromOption = None,
    end: ToOption = None,
    lookback_hours: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Hours back from the newest complete hour that holds rows.")
    ] = None,
    min_agents: Annotated[int | None, typer.Option("--min-agents", min=1, help="Usable episodes that make an hour ready.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List hours with their rows and readiness for training."""
    from babylon_rl.training.freezing import freeze_bounds  # other commands of this file need not wait for it

    settings = load_settings() if min_agents is None else load_settings(min_agents_per_window=min_agents)
    now = utc_now()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        chosen = _wanted(connection, now, first, end, lookback_hours)
        summaries = _summaries(connection, settings, now, chosen)
        unmatched = unmatched_sentence(connection, first or (chosen[0] if chosen else FIRST_POSSIBLE), now, end)
        verdict = _verdict(summaries, freeze_bounds(connection, settings, now).first, settings)
    rows = [window_row(facts) for facts in summaries]
    document = {
        "windows": rows,
        "readyAt": {str(agents): sum(facts.usable_episodes >= agents for facts in summaries) for agents in AGENT_COUNTS},
        "verdict": verdict,
    }
    if not summaries:
        say("No trajectory has been recorded in these hours.")
    if unmatched:
        say(unmatched)
    emit(document, [Table(WINDOWS, rows), verdict], as_json)


def _summaries(connection: Connection, settings: Settings, now: datetime, windows: list[str]) -> list[WindowSummary]:
    found, judges = list[WindowSummary](), have_scores(connection)
    # A portion at a time: of a portion all trajectories are held, of an hour its summary.
    portions = reading_chunks(connection, windows)
    with progress_of_parts() as on_progress:
        for some in portions:
            readings = read_windows(connection, some, settings)
            judged = input_versions(connection, some) if judges else {}
            set_aside = quarantined(connection, some)
            found += [
                summary(reading, now, judged=judged.get(window), quarantined=window in set_aside) for window, reading in readings.items()
            ]
            if len(portions) > 1:
                on_progress("hours read", len(found), len(windows))
    return found


def _verdict(summaries: Sequence[WindowSummary], lookback_start: str, settings: Settings) -> str:
    ready = [facts.window for facts in summaries if facts.usable_episodes >= READY_AGENTS]
    if len(ready) < READY_WINDOWS:
        return f"Not ready: {len(ready)} of {READY_WINDOWS} windows with {READY_AGENTS}+ agents."
    older = sum(window < lookback_start for window in ready)
    beyond = f" Beyond LOOKBACK_HOURS ({settings.lookback_hours}): {older} of them, which only --from and --to train." if older else ""
    return f"READY FOR TRAINING: {len(ready)} windows with {READY_AGENTS}+ agents.{beyond}"


def window_row(facts: WindowSummary) -> dict[str, Any]:
    return document_of(
        facts, "window", "rows", "eligible", "new_trainable", "rejected", "agents", "episodes", "usable_episodes", "ready", "state",
        "message_sources", "avg_pnl", "trainable_sequences", "quality",
    )  # fmt: skip


@app.command("episodes")
def episodes(window: WindowArgument, as_json: JsonOption = False) -> None:
    """Show the stitched episodes of an hour."""
    now, settings = utc_now(), load_settings()
    refuse_future(window, now)
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        reading = read_window(connection, window, settings, texts=False)
    _say_when_running(window, now)
    if not reading.rows:
        say(f"No trajectory has been recorded in {window}.")
    elif not reading.episodes:
        say(f"None of the {reading.rows} trajectories in {window} counts; `babylon-rl rejected` says why.")
    rows = episode_rows(reading)
    emit({"window": window, "episodes": rows}, [Table(EPISODES, rows)], as_json)


def episode_rows(reading: WindowReading) -> list[dict[str, Any]]:
    shown = (
        "agent_id", "trajectory_ids", "steps", "start_pnl", "end_pnl", "window_pnl", "wins", "losses", "win_rate", "trades", "posts",
        "message_sources", "usable", "used", "actions", "trainable_sequences",
    )  # fmt: skip
    return [document_of(episode, *shown) for episode in reading.episodes]


def _say_when_running(window: str, now: datetime) -> None:
    if window_end(window) > now:
        say(f"{window} has not ended; this is how it stands.")


@app.command("rejected")
def rejected(first: FromOption = None, end: ToOption = None, as_json: JsonOption = False) -> None:
    """List the rejected trajectories with their reasons."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        chosen = _wanted(connection, utc_now(), first, end, None)
        rejections, rows = list[Rejection](), 0
        for some in reading_chunks(connection, chosen):
            for reading in read_windows(connection, some, settings).values():
                rejections += reading.rejections
                rows += reading.rows
    if not rejections:
        say("No trajectory was rejected in these hours." if chosen else "No trajectory has been recorded in these hours.")
    rejected_rows = [document_of(rejection, "trajectory_id", "window", "reason", "detail") for rejection in rejections]
    document = {"rejected": rejected_rows, "rows": rows, "byReason": count_reasons(rejections)}
    emit(document, rejected_parts(rejections, rejected_rows, rows), as_json)


def rejected_parts(rejections: Sequence[Rejection], rejected_rows: Sequence[Mapping[str, Any]], rows: int) -> list[Table | str]:
    counted = ", ".join(f"{number} {reason}" for reason, number in count_reasons(rejections).items())
    summed = [f"{len(rejections)} of {rows} rows rejected: {counted}."] if rejections else []
    return [Table(REJECTED, rejected_rows), *summed]


@app.command("outcomes")
def outcomes(window: WindowArgument, as_json: JsonOption = False) -> None:
    """Show the market outcomes of an hour."""
    from babylon_rl.market.outcomes import read_outcomes  # `windows` need not wait for it

    now, settings = utc_now(), load_settings()
    refuse_future(window, now)
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        market = read_outcomes(connection, window, settings)
    _say_when_running(window, now)
    if not market.stocks and not market.predictions:
        say(f"Neither a price nor an event has been recorded in {window}.")
    emit(market.document(), outcome_parts(market), as_json)


def outcome_parts(market: "WindowOutcomes") -> list[Table | str]:
    questions = [(f"no. {p.question_number}" if p.question_number is not None else p.market_id, p.news) for p in market.predictions]
    parts = [Table(STOCKS, market.stocks), *_news([(s.ticker, s.news) for s in market.stocks]), ""]
    parts += [Table(QUESTIONS, market.predictions), *_news(questions), ""]
    parts += [f"{flagged['subject']} is flagged: {flagged['flag'].replace('_', ' ')}." for flagged in market.flags]
    if market.mean_change is not None and market.volatility is not None:
        parts.append(f"The market as a whole: mean change {market.mean_change:+.2f} %, volatility {market.volatility:.2f} %.")
    return parts


def _news(news: Sequence[tuple[str, Sequence[str]]]) -> list[Table | str]:
    rows: list[list[str]] = []
    for subject, descriptions in news:
        texts = [text if times == 1 else f"{text} ({times} times)" for text, times in Counter(descriptions).items()]
        if len(texts) > NEWS_SHOWN + 1:
            texts = [*texts[:NEWS_SHOWN], f"and {len(texts) - NEWS_SHOWN} more; --json has them all"]
        rows += [[subject if position == 0 else "", line] for position, line in enumerate(texts)]
    return ["", listed(["news of", "what happened"], rows)] if rows else []


@app.command("scores")
def scores(window: WindowArgument, as_json: JsonOption = False) -> None:
    """Show the scores of an hour's group, as they were judged."""
    from babylon_rl.judge.consensus import scores_document  # `windows` need not wait for them
    from babylon_rl.judge.scoring import stored_scores

    refuse_future(window, utc_now())
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        group = stored_scores(connection, [window]).get(window)
        why = _why_unscored(connection, window) if group is None else ""
    if group is None:
        say(f"{window} has no scores. {why}")
        # The same keys as with scores, so that scripts need no second shape.
        facts = dict.fromkeys(("judge", "groupSize", "mean", "spread", "disagreement", "scores"))
        emit({"window": window} | facts | {"groupSize": 0, "scores": []}, [], as_json)
        return
    noted = "" if group.has_spread else " No spread: the group carries no signal and does not train."
    judged = f"Judged by {group.judge}, version {group.judge_version}: mean {group.mean:.4f}, spread {group.spread:.4f}.{noted}"
    document = scores_document(group)
    emit(document, [Table(SCORES, document["scores"]), judged, *_judgement_sentences(group)], as_json)


def _why_unscored(connection: Connection, window: str) -> str:
    if have_scores(connection):
        if pending := read_pending(connection, [window]).get(window):
            return f"It waits: {pending.reason}"
        if aside := read_quarantined(connection, [window]).get(window):
            return f"It is in quarantine: {aside.reason} `babylon-rl judge retry {window}` asks again."
    return f"Run `babylon-rl score --window {window}`; `babylon-rl windows` says whether it has a group."


def _judgement_sentences(group: GroupScores) -> list[str]:
    """Facts of a language model's judgement, and suspicious texts; [] for the heuristic."""
    how = group.judgement
    if how is None:
        return []
    tau = "" if how.tau is None else f", Kendall's tau {how.tau:.2f}"
    price = "an unknown price" if how.usd is None else f"${how.usd:.4f}"
    sentences = [f"{how.orders} orders: mean difference {group.disagreement:.3f}{tau}. {how.requests} requests for {price}."]
    if how.masked is not None:
        counts = (
            f"count, as {', '.join(how.gainers)} gained by them" if how.masked else "do not count, as nobody gained by them beyond chance"
        )
        sentences.append(f"The scores with flagged sentences masked {counts} (noise {how.noise or 0.0:.3f}).")
        sentences += [f"masked: {line}" for line in how.masked_passages]
    sentences += [f"context: {flag}" for flag in how.context_flags]
    sentences += [f"{score.agent_id} gained {score.gain:+.3f} by flagged sentences." for score in group.scores if score.gain]
    sentences += [f"The score of {agent} follows its words: they gained it {(how.words or {})[agent]:+.3f}." for agent in how.followed]
    return [*sentences, *(f"{score.agent_id}: {flag}" for score in group.scores for flag in score.flags)]


def _wanted(connection: Connection, now: datetime, first: str | None, end: str | None, lookback_hours: int | None) -> list[str]:
    if lookback_hours is not None and (first is not None or end is not None):
        raise UsageError("Give --from and --to, or --lookback-hours, not both.")
    # Refuses a malformed hour, and a range that runs backwards.
    if end is not None:
        next(window_range(first or end, end), None)
    if first is not None:
        refuse_future(first, now)
    # The look-back ends with the newest complete hour that holds rows, not with now.
    if lookback_hours is not None:
        newest = newest_window_with_rows(connection, newest_complete(now))
        if newest is None:
            return []
        end = window_of(window_end(newest))
        first = window_of(window_end(newest) - lookback_hours * HOUR)
    return windows_with_rows(connection, first or FIRST_POSSIBLE, end or LAST_POSSIBLE)
