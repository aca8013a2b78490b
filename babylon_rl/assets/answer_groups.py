"""Asset ``answer_groups``: answers of an hour's models, replayed and judged by prompt."""

from typing import Any

from babylon_rl.assets.partitions import AS_LOADED, HourReport, counts, hourly_asset, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.answer_groups import answer_rules, sync_answer_groups, without_answers
from babylon_rl.store.answer_groups import AnswerGroup, ReplayedHour
from babylon_rl.store.connection import Connection

NOTHING = "no rows"


@hourly_asset(
    deps=["window_groups", "market_outcomes"],
    group_name="judge",
    code_version=answer_rules(AS_LOADED),
    table="babylon_rl.answer_groups",
    columns={
        "window": ("varchar(50)", "The hour"),
        "trajectoryId": ("text", "The trajectory of the call"),
        "callId": ("text", "The recorded call whose prompt is answered"),
        "modelVersion": ("text", "The version of ours that was asked"),
        "answers": ("jsonb", "Counterfactual: answer, dollars of its tick, score 0 to 1, of every answer; means over several futures"),
    },
    says="With CREDIT=answers: replays every answer that a model could have given to its recorded prompts, in hours whose market can be "
    "made again, and judges the answers to a prompt as a group. Nobody played them, and nothing counts them as played.",
    when_red="the log of its run names the hour. An hour that cannot be replayed is no failure: its page says why, and it trains by the "
    "hour.",
)
def answer_groups(connection: Connection, windows: list[str], babylon: Babylon, pictures: frozenset[str]) -> dict[str, HourReport]:
    if (why := without_answers(babylon.settings)) is not None:
        return {window: HourReport(why, counts(0, answers=f"none: {why}")) for window in windows}
    replayed = sync_answer_groups(connection, windows, babylon.settings, babylon.now())
    return {window: _report(replayed.get(window)) for window in windows}


def _report(hour: ReplayedHour | None) -> HourReport:
    if hour is None:
        return HourReport(NOTHING, counts(0, answers=NOTHING))
    metadata = counts(len(hour.groups), answers_count=hour.answers, not_replayed=hour.reason or None, changed=hour.changed)
    if hour.groups:
        metadata["groups"] = table([_row(group) for group in hour.groups])
    return HourReport(hour.data_version, metadata)


def _row(group: AnswerGroup) -> dict[str, Any]:
    best, worst = max(group.answers, key=lambda answer: answer[1]), min(group.answers, key=lambda answer: answer[1])
    return {
        "call": group.call_id, "version": group.model_version or "another model", "answers": len(group.answers), "best": best[0],
        "best $": best[1], "worst": worst[0], "worst $": worst[1],
    }  # fmt: skip
