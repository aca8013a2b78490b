"""Result of `score` per hour: judged, unchanged, waiting or quarantined, and which scores remain."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from babylon_rl.settings import HEURISTIC, Settings

if TYPE_CHECKING:
    from babylon_rl.store.connection import Connection
    from babylon_rl.types import GroupScores


Outcome = Literal["judged", "unchanged", "waiting", "quarantined"]
COLUMNS = ("window", "came to", "judge", "agents", "mean", "spread", "best")


@dataclass(frozen=True)
class HourOutcome:
    """One hour after a scoring.

    ``scores`` are its present scores, of any judge; None without any.
    """

    window: str
    outcome: Outcome
    asked: str
    scores: "GroupScores | None"
    reason: str | None = None

    @property
    def words(self) -> str:
        """The result in words, including whether earlier scores are shown."""
        if self.outcome == "judged":
            return "judged now"
        if self.outcome == "unchanged":
            others = self.scores is not None and self.scores.judge != self.asked
            return "unchanged, by another judge" if others else "unchanged"
        return f"{self.outcome}, no scores" if self.scores is None else f"{self.outcome}, keeps earlier scores"

    def row(self) -> list[Any]:
        """Cells of the table, in the order of ``COLUMNS``."""
        if self.scores is None:
            return [self.window, self.words, None, None, None, None, None]
        held = self.scores
        return [self.window, self.words, held.judge, held.group_size, round(held.mean, 4), round(held.spread, 4), held.scores[0].agent_id]

    def document(self) -> dict[str, Any]:
        """This result as a JSON-ready dict.

        ``keptScoresOf`` names the judge of scores that are not from this call.
        """
        kept = None if self.scores is None or self.outcome == "judged" else self.scores.judge
        return {"window": self.window, "outcome": self.outcome, "keptScoresOf": kept, "reason": self.reason}


def read_outcomes(connection: "Connection", windows: Sequence[str], lacking: Collection[str], settings: Settings) -> list[HourOutcome]:
    """Results of the judge of ``settings`` for some hours.

    ``lacking`` are the hours that were to be judged. Hours without a group are absent.
    """
    from babylon_rl.judge.scoring import stored_scores
    from babylon_rl.store.scores import read_pending, read_quarantined

    judge = settings.judge_model
    groups = stored_scores(connection, windows)
    # Only a language model can leave hours pending or in quarantine.
    waiting: dict[str, str] = {}
    aside: dict[str, str] = {}
    if judge != HEURISTIC:
        from babylon_rl.judge.plan import judge_version

        waiting = read_pending(connection, windows, judge)
        by = (judge, judge_version(settings))
        aside = {q.window: q.reason for q in read_quarantined(connection, windows).values() if (q.judge, q.judge_version) == by}
    results = []
    for window in windows:
        scores = groups.get(window)
        if window in lacking and window in aside:
            results.append(HourOutcome(window, "quarantined", judge, scores, aside[window]))
        elif window in lacking and window in waiting:
            results.append(HourOutcome(window, "waiting", judge, scores, waiting[window]))
        elif scores is not None:
            fresh = window in lacking and scores.judge == judge
            results.append(HourOutcome(window, "judged" if fresh else "unchanged", judge, scores))
    return results


def sentences(outcomes: Sequence[HourOutcome], judge: str) -> list[str]:
    """Remarks beside the table: hours that the judge did not score, and advice."""
    remarks = []
    # Three remarks, each only if it applies: quarantined hours, kept scores, scores of another judge.
    aside = [entry.window for entry in outcomes if entry.outcome == "quarantined"]
    if aside:
        advice = "`babylon-rl judge quarantine` says why, `babylon-rl judge retry` asks again."
        remarks.append(f"In quarantine, not scored by {judge}: {', '.join(aside)}. {advice}")
    kept = [entry for entry in outcomes if entry.outcome in ("waiting", "quarantined") and entry.scores is not None]
    if kept:
        named = ", ".join(f"{entry.window} those of {entry.scores.judge}" for entry in kept if entry.scores is not None)
        remarks.append(f"Scores that {judge} did not replace are kept: {named}.")
    others = [entry.window for entry in outcomes if entry.outcome == "unchanged" and entry.scores and entry.scores.judge != judge]
    if others:
        remarks.append(f"Scores of another judge than {judge} stand: {', '.join(others)}. --force judges them anew.")
    return remarks
