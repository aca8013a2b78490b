"""Results of markets that nobody played, for what is made of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from babylon_rl.evaluation.gate import BASE, CANDIDATE, STRATEGY, Comparison, compare
from babylon_rl.store.benchmarks import MarketResult

TICKS = 12


def result(index: int, pnl_usd: float, **changes: Any) -> MarketResult:
    """One market with that P&L: half of 12 orders bought, half sold, seven of them right and won."""
    fields: dict[str, Any] = {
        "wins": 7, "losses": 5, "trades": TICKS, "decisions": TICKS, "invalid": 0, "actions": {"buy": 6, "sell": 6, "hold": 0},
        "predictions": TICKS, "predictions_right": 7, "equity_usd": (0.0,) * (TICKS - 1) + (pnl_usd,), "refused": 0,
    }  # fmt: skip
    return MarketResult(snapshot=f"benchmark-{index:04d}", pnl_usd=pnl_usd, **fields | changes)


def invalid(count: int) -> dict[str, Any]:
    """What changes in ``result`` when so many answers could not be used."""
    right = min(7, TICKS - count)
    return {
        "invalid": count, "actions": {"buy": TICKS - count, "sell": 0, "hold": 0}, "trades": TICKS - count, "wins": right,
        "losses": TICKS - count - right, "predictions": TICKS - count, "predictions_right": right,
    }  # fmt: skip


def nothing(markets: int) -> list[MarketResult]:
    """What doing nothing brings."""
    held = {"buy": 0, "sell": 0, "hold": TICKS}
    return [result(i, 0.0, wins=0, losses=0, trades=0, actions=held, predictions=0, predictions_right=0) for i in range(markets)]


def compared(
    candidate: Sequence[float | MarketResult],
    reference: Sequence[float | MarketResult] | None = None,
    *,
    deployed: Sequence[float] | None = None,
    analyses: int = 1,
) -> Comparison:
    """v1.0.1 with the base (0 in every market by default), the deployed v1.0.0 and doing nothing, by their P&L in every market."""
    count = len(candidate)
    played: Mapping[str, tuple[str, list[MarketResult]]] = {"v1.0.1": (CANDIDATE, _results(candidate))}
    if deployed is not None:
        played = {**played, "v1.0.0": ("deployed", _results(deployed))}
    base = _results(reference if reference is not None else [0.0] * count)
    played = {**played, "base": (BASE, base), "nothing": (STRATEGY, nothing(count))}
    name = "base" if deployed is None else "v1.0.0"
    return compare(played, "v1.0.1", name, [f"The reference is {name}."], analyses)


def _results(values: Sequence[float | MarketResult]) -> list[MarketResult]:
    return [value if isinstance(value, MarketResult) else result(index, value) for index, value in enumerate(values)]
