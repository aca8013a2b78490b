"""Asset ``hindsight``: correctness of an hour's actions, and leaks in its training texts."""

from babylon_rl.assets.partitions import AS_LOADED, HourReport, counts, embedded, hourly_asset, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.hindsight import sync_hindsight
from babylon_rl.judge.plan import hindsight_rules
from babylon_rl.reporting.plots import OTHER, bar_plot
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import AgentCorrectness, HourHindsight, agent_correctness

NOTHING = "no rows"


@hourly_asset(
    deps=["window_groups", "market_outcomes"],
    group_name="market",
    code_version=hindsight_rules(AS_LOADED),
    table="babylon_rl.action_outcomes",
    columns={
        "window": ("varchar(50)", "The hour"),
        "trajectoryId": ("text", "The trajectory that acted"),
        "step": ("integer", "Place among its completed steps, from 0"),
        "agentId": ("text", "Who acted"),
        "actionType": ("text", "As recorded"),
        "executed": ("boolean", "Whether the action succeeded"),
        "kind": ("text", "prediction or stock"),
        "target": ("text", "The name by which the action called it"),
        "organizationId": ("text", "The organization that it means; empty for nobody or several"),
        "marketId": ("text", "The question or market that it means"),
        "side": ("text", "YES, NO, UP or DOWN"),
        "outcome": ("text", "The official answer, once there is one"),
        "changePercent": ("double precision", "The stock's change over the hour, in percent"),
        "correct": ("boolean", "Whether it was right; empty while nobody knows"),
    },
    says="Says of every trade whether it was right, once that is known, and finds the training texts that hold what only became "
    "known after the hour: they never train.",
    when_red="the log of its run names the hour; it is made again by itself when an answer or a row of the hour changes.",
)
def hindsight(connection: Connection, windows: list[str], babylon: Babylon, pictures: frozenset[str]) -> dict[str, HourReport]:
    reports = sync_hindsight(connection, windows, babylon.settings, babylon.now())
    agents = agent_correctness(connection, windows)
    return {window: _report(window, reports.get(window), agents[window], drawn=window in pictures) for window in windows}


def _report(window: str, seen: HourHindsight | None, agents: list[AgentCorrectness], *, drawn: bool) -> HourReport:
    if seen is None:
        return HourReport(NOTHING, counts(0, hindsight=NOTHING))
    metadata = counts(
        seen.actions,
        known=seen.known,
        right=seen.right,
        share_right=seen.right / seen.known if seen.known else None,
        sequences=seen.sequences,
        leaked_sequences=seen.leaked,
        changed=seen.changed,
    )
    # Best agents first; equal shares by id, so that the plot is stable.
    shares = sorted(((agent.agent_id, agent.share) for agent in agents if agent.share is not None), key=lambda entry: (-entry[1], entry[0]))
    if drawn and shares:
        metadata |= embedded([bar_plot(f"Actions that proved right, {window}", "share of those known", shares, colour=OTHER)])
    if agents:
        metadata["agents"] = table(
            [{"agent": a.agent_id, "actions": a.actions, "known": a.known, "right": a.right, "share right": a.share} for a in agents]
        )
    return HourReport(seen.data_version, metadata)
