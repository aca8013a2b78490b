"""Heuristic score: a formula over an episode's numbers, used when no judge model is set.

0.5 * clip((pnl + 1000) / 2000, 0, 1) + 0.3 * win rate + 0.2 * min(1, steps / 20), with the window's P&L in dollars and a win rate of
0.5 when nothing was won or lost. Everywhere it appears it is labelled as the heuristic.
"""

from babylon_rl.types import Episode

NAME = "heuristic"
VERSION = "1"
RUBRIC = {"formula": "0.5*clip((pnl+1000)/2000, 0, 1) + 0.3*winRate + 0.2*min(1, actions/20)", "pnl": "window P&L in dollars"}
_NEITHER = 0.5
_ENOUGH_ACTIONS = 20


def heuristic_score(pnl_usd: float, actions: int, wins: int, losses: int) -> float:
    """Compute the score, 0..1."""
    decided = wins + losses
    win_rate = wins / decided if decided else _NEITHER
    return 0.5 * min(1.0, max(0.0, (pnl_usd + 1000) / 2000)) + 0.3 * win_rate + 0.2 * min(1.0, actions / _ENOUGH_ACTIONS)


def judge_episode(episode: Episode) -> tuple[float, str]:
    """Score one episode, with the numbers used as reasoning."""
    score = heuristic_score(episode.window_pnl, episode.steps, episode.wins, episode.losses)
    reasoning = (
        f"Heuristic (a formula, no judge model): window P&L ${episode.window_pnl:.2f}, "
        f"{episode.wins} wins, {episode.losses} losses, {episode.steps} actions: {score:.4f}."
    )
    return score, reasoning
