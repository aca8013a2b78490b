"""Asset ``window_groups``: episodes of every hour, and whether they are enough for a group."""

from babylon_rl.assets.partitions import AS_LOADED, HourReport, counts, embedded, hourly_asset, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.plan import episode_rules, note_changes
from babylon_rl.reporting.numbers import percent
from babylon_rl.reporting.plots import LOSS, bar_plot
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import first_rejections, stored_episodes
from babylon_rl.types import Episode, Rejection, WindowSummary


@hourly_asset(
    deps=["raw_trajectories"],
    group_name="episodes",
    code_version=episode_rules(AS_LOADED),
    table="babylon_rl.episodes",
    columns={
        "window": ("varchar(50)", "The hour"),
        "agentId": ("text", "The agent; one episode per agent and hour"),
        "trajectoryIds": ("text[]", "Its eligible trajectories, in order"),
        "steps": ("integer", "Completed steps"),
        "windowPnl": ("double precision", "Dollars, end minus start of the hour"),
        "winRate": ("double precision", "Wins among the trajectories that won or lost"),
        "messageSources": ("jsonb", "Trajectories by where their messages came from"),
        "usable": ("boolean", "Enough steps to be judged"),
        "trainableSequences": ("integer", "LLM calls that can train"),
    },
    says="Reads an hour's trajectories, rejects what does not count with a reason, and stitches the rest into episodes.",
    when_red="the log of its run names the hour and what failed; `babylon-rl episodes HOUR` reads it the same way. Overdue: no hour "
    "with rows has ended lately, and `babylon-rl verify-data` says since when.",
)
def window_groups(connection: Connection, windows: list[str], babylon: Babylon, pictures: frozenset[str]) -> dict[str, HourReport]:
    summaries = sync_windows(connection, windows, babylon.settings, babylon.now())
    # Late rows change what a judge would be asked: outdated scores are marked, and a quarantine whose request has changed ends.
    note_changes(connection, windows, babylon.settings)
    episodes, rejected = stored_episodes(connection, windows), first_rejections(connection, windows)
    return {window: _report(facts, episodes[window], rejected[window], drawn=window in pictures) for window, facts in summaries.items()}


def _report(facts: WindowSummary, episodes: list[Episode], rejected: list[Rejection], *, drawn: bool) -> HourReport:
    metadata = counts(
        len(episodes),
        rows=facts.rows,
        eligible=facts.eligible,
        new_trainable=facts.new_trainable,
        usable_episodes=facts.usable_episodes,
        ready=facts.ready,
        rejected=facts.rejected or None,
        message_sources=facts.message_sources,
        trainable_sequences=facts.trainable_sequences,
        mean_pnl_usd=facts.avg_pnl,
        changed=facts.changed,
    )
    pictures = []
    if drawn and episodes:
        pictures.append(bar_plot(f"P&L by agent, {facts.window}", "dollars", [(e.agent_id, e.window_pnl) for e in episodes]))
    if drawn and facts.rejected:
        title = f"Rejected rows, {facts.window} ({sum(facts.rejected.values())} of {facts.rows})"
        pictures.append(bar_plot(title, "rows", list(facts.rejected.items()), colour=LOSS))
    metadata |= embedded(pictures)
    if episodes:
        metadata["episodes"] = table([
            {"agent": e.agent_id, "P&L $": e.window_pnl, "wins": None if e.win_rate is None else percent(e.win_rate), "steps": e.steps,
             "trades": e.trades, "usable": e.usable, "trains": e.trainable_sequences}
            for e in episodes
        ])  # fmt: skip
    if rejected:
        metadata["rejected_rows"] = table(
            [{"reason": rejection.reason, "trajectory": rejection.trajectory_id, "detail": rejection.detail} for rejection in rejected]
        )
    return HourReport(facts.data_version, metadata)
