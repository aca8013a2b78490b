"""Is a snapshot whole, and does it agree with itself? Errors make it unusable; warnings are what the game's own snapshots are known for."""

import math
from collections.abc import Iterable

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file.events_checks import check_events
from babylon_rl.evaluation.snapshot_file.findings import Findings
from babylon_rl.evaluation.snapshot_file.origin import config_of
from babylon_rl.evaluation.snapshot_file.schema import VERSION, PerpetualMarket, PredictionMarket, Snapshot, State
from babylon_rl.evaluation.snapshot_file.truth_checks import check_truth

TOLERANCE = 1e-5


def validate(snapshot: Snapshot) -> tuple[list[str], list[str]]:
    """Errors and warnings, a sentence each; a snapshot without errors can be turned into a scenario."""
    findings = Findings()
    _check_frame(snapshot, findings)
    _check_times(snapshot, findings)
    for state in snapshot.states():
        _check_state(state, findings)
    _check_course(snapshot.states(), findings)
    check_events(snapshot, findings)
    check_truth(snapshot, findings)
    return findings.sentences()


def _check_frame(snapshot: Snapshot, findings: Findings) -> None:
    if snapshot.version != VERSION:
        findings.error("version", f"It is of version {snapshot.version!r}, allowed is {VERSION!r}")
    if not snapshot.id:
        findings.error("id", "It has no id")
    if snapshot.tick_interval <= 0 or snapshot.duration <= 0:
        findings.error("length", f"It lasts {snapshot.duration} s in ticks of {snapshot.tick_interval} s; both must be positive")
        return
    wanted, rest = divmod(snapshot.duration, snapshot.tick_interval)
    if len(snapshot.ticks) < wanted or not snapshot.ticks:
        findings.error("truncated", f"It is cut off: {len(snapshot.ticks)} ticks are there, {wanted} belong to its duration")
    elif len(snapshot.ticks) > wanted + bool(rest):
        findings.error("too long", f"It has {len(snapshot.ticks)} ticks, {wanted + bool(rest)} belong to its duration")
    if not snapshot.initial_state.prediction_markets and not snapshot.initial_state.perpetual_markets:
        findings.warning("empty", "Nothing can be traded at its start")
    _check_origin(snapshot, findings)


def _check_origin(snapshot: Snapshot, findings: Findings) -> None:
    """What a snapshot of ours says of its config, without generating it again; `to_scenario` compares the rest."""
    if snapshot.config is None and snapshot.generator is None:
        return
    if snapshot.config is None or snapshot.generator is None:
        findings.error("origin", "It has a config without its generator, or a generator without its config")
        return
    try:
        config = config_of(snapshot.config)
    except MarketError as error:
        findings.error("config", str(error).rstrip("."))
        return
    first = snapshot.initial_state
    for what, asked, found in (
        ("ticks", config.ticks, len(snapshot.ticks)),
        ("seconds a tick", config.tick_seconds, snapshot.tick_interval),
        ("stocks", config.perps, len(first.perpetual_markets)),
        ("questions", config.predictions, len(snapshot.ground_truth.market_outcomes)),
        ("milliseconds at its start", config.start_ms, first.timestamp),
        ("as its seed", config.seed, snapshot.seed),
    ):
        if asked != found:
            findings.error("config", f"Its config says {asked} {what}, it has {found}")


def _check_times(snapshot: Snapshot, findings: Findings) -> None:
    first, ms = snapshot.initial_state, snapshot.tick_interval * 1000
    if first.tick != 0:
        findings.error("first tick", f"Its first state is that of tick {first.tick}, not 0")
    if first.timestamp != snapshot.created_at:
        findings.warning("created", f"It was created at {snapshot.created_at}, its market begins at {first.timestamp}")
    last = first.timestamp
    for number, tick in enumerate(snapshot.ticks):
        if tick.number != number:
            findings.error("numbers", f"Its ticks are not consecutive: number {tick.number} comes where {number} belongs")
        if tick.state.tick != tick.number + 1:
            findings.error("state tick", f"Tick {tick.number} ends with the state of tick {tick.state.tick}, not {tick.number + 1}")
        if tick.state.timestamp != tick.timestamp:
            findings.warning("state time", f"Tick {tick.number} is dated {tick.timestamp}, its state {tick.state.timestamp}")
        if tick.timestamp <= last:
            findings.error("time", f"Time stands still or runs backwards at tick {tick.number}: {tick.timestamp} after {last}")
        elif tick.timestamp != first.timestamp + (number + 1) * ms:
            findings.warning(
                "interval", f"Tick {tick.number} is dated {tick.timestamp}, by the interval it is {first.timestamp + (number + 1) * ms}"
            )
        last = tick.timestamp


def _check_state(state: State, findings: Findings) -> None:
    where = f"at tick {state.tick}"
    _check_unique("question", [market.id for market in state.prediction_markets], where, findings)
    _check_unique("stock", [market.ticker for market in state.perpetual_markets], where, findings)
    _check_unique("agent", [person.id for person in state.agents], where, findings)
    for question in state.prediction_markets:
        _check_question(question, state, where, findings)
    for stock in state.perpetual_markets:
        _check_stock(stock, where, findings)


def _check_unique(kind: str, names: list[str], where: str, findings: Findings) -> None:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        findings.error(f"twice {kind}", f"The {kind} {twice[0]!r} is there twice {where}")


def _check_question(market: PredictionMarket, state: State, where: str, findings: Findings) -> None:
    yes, no = market.yes_price, market.no_price
    if not 0.0 <= yes <= 1.0 or not 0.0 <= no <= 1.0:
        findings.error("probability", f"Question {market.id} costs {yes} for YES and {no} for NO {where}, outside 0 to 1")
    elif abs(yes + no - 1.0) > TOLERANCE:
        findings.error("sum", f"YES and NO of {market.id} cost {yes} and {no} {where}, which is not 1 together")
    if negative := [name for name in ("yes_shares", "no_shares", "total_volume", "liquidity") if getattr(market, name) < 0.0]:
        findings.error("negative", f"Question {market.id} has negative {negative[0].replace('_', ' ')} {where}")
    elif not market.resolved and not _near(market.no_shares, market, yes):
        why = "its shares are those sold, not a maker's" if _near(market.yes_shares, market, yes) else "which its shares do not explain"
        findings.warning("shares", f"YES of {market.id} costs {yes} {where}: {why}")
    if market.resolve_at <= market.created_at:
        findings.error("life", f"Question {market.id} is resolved at {market.resolve_at}, not after it was created at {market.created_at}")
    elif not market.resolved and state.timestamp >= market.resolve_at:
        findings.warning("open too long", f"Question {market.id} is still open {where}, its answer was due at {market.resolve_at}")


def _near(part: float, market: PredictionMarket, price: float) -> bool:
    shares = market.yes_shares + market.no_shares
    return shares == 0.0 or abs(part / shares - price) <= TOLERANCE


def _check_stock(market: PerpetualMarket, where: str, findings: Findings) -> None:
    if not 0.0 < market.price < math.inf:
        findings.error("price", f"Stock {market.ticker} costs {market.price} $ {where}; a price is positive and finite")
    if market.volume_24h < 0.0 or market.open_interest < 0.0:
        findings.error("negative stock", f"Stock {market.ticker} has a negative volume or open interest {where}")
    if not -1.0 < market.funding_rate < 1.0:
        findings.warning("funding", f"The funding rate of {market.ticker} is {market.funding_rate} {where}; it is taken as 0")


def _check_course(states: Iterable[State], findings: Findings) -> None:
    """From state to state: nothing disappears, no answer is taken back, and something moves."""
    moved: dict[str, bool] = {}
    before: State | None = None
    for state in states:
        if before is not None:
            old = {market.id: market for market in before.prediction_markets}
            new = {market.id: market for market in state.prediction_markets}
            for name in (name for name in old if name not in new):
                findings.error("gone", f"Question {name} is missing from the state of tick {state.tick}")
            for name in (name for name in old if name in new):
                moved[name] = moved.get(name, False) or old[name].yes_price != new[name].yes_price
                if old[name].resolved and not new[name].resolved:
                    findings.error("reopened", f"Question {name} is open again at tick {state.tick}")
            if [market.ticker for market in before.perpetual_markets] != [market.ticker for market in state.perpetual_markets]:
                findings.error("stocks", f"The stocks of tick {state.tick} are not those of the tick before")
                continue
            for one, other in zip(before.perpetual_markets, state.perpetual_markets, strict=True):
                moved[one.ticker] = moved.get(one.ticker, False) or one.price != other.price
        before = state
    still = [name for name, has in moved.items() if not has]
    if still:
        findings.warning("still", f"{len(still)} of {len(moved)} markets never move: {', '.join(still[:8])}")
