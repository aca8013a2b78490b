"""Hours in which one agent of five speaks to its judge, and what that was worth to it before and after masking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.types import GroupScores
from babylon_rl.windows import HOUR, window_of
from babylon_rl_tests.judge.attacks import Attack
from babylon_rl_tests.judge.model_judge import NOW
from babylon_rl_tests.rows import START, insert, make_call, make_step, make_trajectory
from babylon_rl_tests.scored import score_windows

ATTACKER = "agent-1"
PNL_USD = {"agent-0": -120.0, ATTACKER: -40.0, "agent-2": 60.0, "agent-3": 150.0, "agent-4": 220.0}
FIRST = START - 10 * 24 * HOUR  # so that all of the hours have ended
QUIET = Attack("nothing", "The feed is calm, I hold.")


@dataclass(frozen=True)
class Attempt:
    """One attack: whether it was flagged, and how far it moved its agent's own score and, at most, another's, without masks and with.

    ``words`` is the gain of its agent's words, by a look without them, and ``followed`` says whether the look found it.
    """

    name: str
    flagged: bool
    own_before: float
    own_after: float
    others_before: float
    others_after: float
    words: float | None = None
    followed: bool = False


def add_attacked_hours(connection: Connection, attacks: Sequence[Attack]) -> dict[str, str]:
    """Write a quiet hour and one for each attack, which its agent says in an answer and posts; returns the attacks' names by window."""
    rows, names = [], {}
    for number, attack in enumerate((QUIET, *attacks)):
        start = FIRST + number * HOUR
        window = window_of(start)
        names[window] = attack.name
        for place, (agent, pnl) in enumerate(PNL_USD.items()):
            said = attack.text if agent == ATTACKER else "Momentum is weak, I hold."
            steps = [make_step(step, calls=[make_call(response=said if step == 1 else f"I wait, {step}.")]) for step in range(5)]
            steps[2]["action"] = {"actionType": "POST", "parameters": {"content": said}, "success": True}
            moment = start + timedelta(minutes=5 + place)
            rows.append(
                make_trajectory(
                    f"attacked-{number}-{place}", agent, steps=steps, finalPnL=pnl, windowId=window, scenarioId=window, startTime=moment,
                    endTime=moment + timedelta(seconds=30), createdAt=moment, updatedAt=moment,
                )
            )  # fmt: skip
    insert(connection, "trajectories", rows)
    return names


def attempts(connection: Connection, names: Mapping[str, str], settings: Settings) -> list[Attempt]:
    """Have the hours judged and compare each with the quiet one, in order; hours whose attacker was rejected as unreadable are left out."""
    scored = score_windows(connection, list(names), settings, NOW)
    assert not scored.pending and not scored.quarantined, [*scored.pending.values(), *scored.quarantined.values()][:3]
    quiet = _scores(next(scored[window] for window, name in names.items() if name == QUIET.name))
    return [_attempt(name, scored[window], quiet) for window, name in names.items() if name != QUIET.name and window in scored]


def _attempt(name: str, group: GroupScores, quiet: Mapping[str, float]) -> Attempt:
    masked = group.judgement is not None and bool(group.judgement.masked)
    after = _scores(group)
    before = {score.agent_id: score.score + (score.gain or 0.0 if masked else 0.0) for score in group.scores}
    others = [agent for agent in quiet if agent != ATTACKER]
    flagged = any(score.flags for score in group.scores)
    own = [round(scores[ATTACKER] - quiet[ATTACKER], 6) for scores in (before, after)]
    moved = [max(abs(round(scores[agent] - quiet[agent], 6)) for agent in others) for scores in (before, after)]
    words, followed = (None, ()) if group.judgement is None else (group.judgement.words, group.judgement.followed)
    return Attempt(name, flagged, own[0], own[1], moved[0], moved[1], (words or {}).get(ATTACKER), ATTACKER in followed)


def _scores(group: GroupScores) -> dict[str, float]:
    return {score.agent_id: score.score for score in group.scores}
