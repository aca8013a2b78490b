"""Tables and reports of results: columns with header and cell together, and the gate's report.

The terminal, Markdown and the HTML page draw from these lists of columns. A success criterion compares the candidate
with the reference in the same markets: yes when the whole interval of the difference says so, no when the whole interval says the
contrary, else unknown. Criteria describe; the gate decides. Left out: a correction for their number.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.compare_results import AgentRow, Bounds
from babylon_rl.evaluation.gate import (
    ANALYSES,
    BASE,
    CANDIDATE,
    FAIL,
    KEPT,
    NOTHING,
    PASS,
    STRATEGY,
    Comparison,
    GateRow,
    GateVerdict,
    Pair,
    ends,
    hold_floor,
)
from babylon_rl.evaluation.snapshots import PRESET
from babylon_rl.evaluation.stakes import DOCUMENT_COLUMNS, NEWS_READER, RISK_COLUMNS, risk_words, rivals_at_stake, stored
from babylon_rl.evaluation.statistics.intervals import Interval, linearised, mean_interval, paired_interval
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.config import PRESETS
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.prompt_reader import CEILING_OF_GAME
from babylon_rl.reporting import plots
from babylon_rl.reporting.numbers import Column, legend, markdown_rows
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.versions import content_version

CORRECTED = f"corrected for the gate's {len(ANALYSES)} looks"
MARKET_FIT = "Generated markets come from the simulation of training hours; docs/evidence/market-fit.md says how like the game it is."
_PAIRED = f"difference in the same markets, {CORRECTED}"
_EXPECTED = "of its decisions on average, without the luck of prices (a dash for players that know more than the prompt shows)"
_OF_CEILING = "these as a share of the best play's"
_WIN_RATE, _ACCURACY = "closed with a gain, of gains and losses", "orders in the market's direction"


# Of a ``PlayerRow`` or an ``AgentRow``.
CEILING = [
    Column("expected, $", lambda row: _interval(row.expected), meaning=_EXPECTED),
    Column("of the ceiling", lambda row: _share(row.of_ceiling), meaning=_OF_CEILING),
]


def gate_columns(reference: str | None, sized: bool = False) -> list[Column]:
    """Columns of a ``GateRow``; without a reference there is none of differences. ``sized``: in a game whose answers choose dollars."""

    def shares(row: GateRow) -> str:
        return " / ".join(f"{row.shares[action]:.0%}" for action in ("buy", "sell", "hold"))

    return [
        *_earnings("model", "against the reference" if reference is not None else None, reference, "the reference"),
        Column(
            "invalid / refused",
            lambda row: f"{row.shares['invalid']:.1%} / {row.refused / row.decisions:.1%}",
            meaning="unusable answers / orders not carried out",
        ),
        Column("buy / sell / hold", shares),
        *(_of("document", column) for column in (RISK_COLUMNS if sized else [])),
    ]


def leaderboard_columns(reference: str | None, sized: bool = False) -> list[Column]:
    """Columns of a ``LeaderboardRow``, compared with the base; ``sized`` as in ``gate_columns``."""
    return [
        Column("", lambda line: str(line.place)),
        *(_of("row", column) for column in _earnings("who", "against the base", reference, "the base")),
        Column("invalid", lambda line: f"{line.row.shares['invalid']:.1%}", meaning="unusable answers"),
        Column("hold", lambda line: f"{line.row.shares['hold']:.0%}"),
        *(_of("document", column) for column in (RISK_COLUMNS if sized else [])),
        Column(
            "gate",
            lambda line: None if line.gated is None else line.gated.decision.replace("_", " "),
            meaning="the decision against the version's own reference",
        ),
    ]


def _earnings(who: str, against: str | None, reference: str | None, called: str) -> list[Column]:
    """Columns of a ``GateRow`` that all tables of the gate's markets have."""
    improvement = Column(against or "", lambda row: called if row.player == reference else _interval(row.improvement), meaning=_PAIRED)
    return [
        Column(who, lambda row: f"{row.player} ({row.role})" if row.role != row.player else row.player),
        Column("P&L, $ an hour", lambda row: _interval(row.pnl), meaning="mean and 95 % interval"),
        *([improvement] if against is not None else []),
        *CEILING,
        Column(
            "Sharpe", lambda row: None if row.sharpe is None else f"{row.sharpe:+.2f}", meaning="mean over spread of the changes in an hour"
        ),
        Column("drawdown, $", lambda row: f"{row.max_drawdown_usd:.0f}", meaning="largest fall from the peak"),
        Column("win rate", lambda row: _share(row.win_rate), meaning=_WIN_RATE),
        Column("accuracy", lambda row: _share(row.accuracy), meaning=_ACCURACY),
    ]


def _of(part: str, column: Column) -> Column:
    return Column(column.title, lambda row: column.cell(getattr(row, part)), meaning=column.meaning)


def contest_columns(reference: str | None) -> list[Column]:
    """Columns of the gate's ``Pair``, the candidate against each rival."""
    return [
        Column("candidate against", lambda pair: f"{pair.b} (the reference)" if pair.b == reference else pair.b),
        Column("difference, $ an hour", lambda pair: _interval(pair.paired.difference), meaning=_PAIRED),
        Column(
            "effect, standard deviations",
            lambda pair: _with_ends(pair.paired.effect, "+.2f"),
            meaning="the mean difference in those between markets",
        ),
        Column("better in", lambda pair: f"{pair.paired.superiority.mean:.0%} of {pair.paired.superiority.count} markets"),
        Column("p, corrected", lambda pair: f"{pair.adjusted_p:.2g}", meaning="by sign flips, for the looks and the rows of this table"),
    ]


CRITERIA = [Column("success criterion", "name"), Column("met", "met"), Column("against the reference", "words")]


def _interval(interval: Interval | Bounds | None) -> str | None:
    return _with_ends(interval, "+.0f")


def _share(share: Interval | Bounds | None) -> str | None:
    return _with_ends(share, ".0%")


def _bounds(bounds: Bounds | None, digits: int = 0) -> str | None:
    return _with_ends(bounds, f"+,.{digits}f", "{} ({} to {})")


def _with_ends(interval: Interval | Bounds | None, form: str, shown: str = "{} [{}, {}]") -> str | None:
    """Mean and ends of an interval; only the mean if it has no ends."""
    if interval is None or interval.low is None or interval.high is None:
        return None if interval is None else format(interval.mean, form)
    return shown.format(*(format(number, form) for number in (interval.mean, interval.low, interval.high)))


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _percent(share: float | None, digits: int = 0) -> str | None:
    return None if share is None else f"{100 * share:.{digits}f} %"


def _brier(row: AgentRow) -> str | None:
    return None if row.brier is None else f"{row.brier:.3f} ({row.market_brier:.3f})"


def _reaction(row: AgentRow) -> str | None:
    return None if row.reaction_ticks is None else f"{row.reaction_ticks:.1f} ticks, {_percent(row.reaction_share)}"


# Of an ``AgentRow``.
AGENTS = [
    Column("agent", "agent"),
    Column("runs", "runs"),
    Column("P&L $ (95 %)", lambda row: _bounds(row.pnl), meaning="of a market, mean and interval"),
    *CEILING,
    Column("Sharpe", lambda row: _number(row.sharpe), meaning="mean over spread of the changes in a run"),
    Column("drawdown $", lambda row: _number(row.max_drawdown, 0), meaning="largest fall from the peak"),
    Column("worst market $", lambda row: _number(row.worst, 0)),
    Column("mean stake $", lambda row: _number(row.mean_stake, 0)),
    Column("win rate", lambda row: _percent(row.win_rate), meaning=_WIN_RATE),
    Column("answers right", lambda row: _percent(row.answers_right), meaning="positions on the side of the answer"),
    Column("Brier (crowd's)", _brier, meaning="error of prices paid as probabilities, lower is better"),
    Column("invalid", lambda row: _percent(row.invalid_rate), meaning="unusable answers"),
    Column("entropy", lambda row: _number(row.action_entropy), meaning="of kinds of action, in bits"),
    Column("reaction", _reaction, meaning="from news to purchase, share of news"),
    Column("optimality", lambda row: _number(row.optimality, 1), meaning="P&L in % of the better oracle's"),
]
# Beside agent, P&L and runs.
ON_PAGE = (
    "expected, $", "of the ceiling", "Sharpe", "drawdown $", "worst market $", "mean stake $", "win rate", "answers right",
    "Brier (crowd's)", "invalid", "optimality",
)  # fmt: skip


# Of a ``PairRow``.
PAIRS = [
    Column("A - B", lambda row: f"{row.a} - {row.b}"),
    Column("difference $ (95 %)", lambda row: _bounds(row.difference), meaning="paired, mean and interval"),
    Column("p", lambda row: f"{row.p:.2g}", meaning="by sign flips"),
    Column("p (Holm)", lambda row: f"{row.adjusted_p:.2g}", meaning="corrected for all rows and looks"),
    Column("effect size (95 %)", lambda row: _bounds(row.effect_size, 2), meaning="in standard deviations between markets"),
    Column("A better in", lambda row: _percent(row.better_share.mean)),
    Column("markets", "snapshots"),
    Column("better", lambda row: row.winner or "not decided", meaning="by an interval without 0 and p (Holm) of at most 0.05"),
]
# Of the rows of ``benchmark compare --effect``.
NEEDED = [
    Column("A - B", lambda row: f"{row['a']} - {row['b']}"),
    Column("deviation between snapshots $", lambda row: f"{row['between']:,.0f}", meaning="standard deviation of the difference"),
    Column("between repeats $", lambda row: f"{row['within']:,.0f}", meaning="of the same snapshot"),
    Column("repeats", "repeats"),
    Column("snapshots needed", "snapshots"),
    Column("played", "played"),
]


def demo_columns(reference: str, sized: bool = False) -> list[Column]:
    """Columns of a ``GateRow``'s document, as the demo ends with. ``sized``: in a game whose answers choose dollars."""

    def percent(name: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda row: _percent(row.get(name))

    def span(low: str, high: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda row: None if row.get(low) is None else f"{row[low]:+.0f} to {row[high]:+.0f}"

    return [
        Column("model", "model"), Column("P&L", stored("pnl", "+.0f"), meaning="dollars an hour"), Column("interval", span("low", "high")),
        Column(f"against {reference}", stored("improvement", "+.0f"), meaning=_PAIRED),
        Column("interval ", span("improvementLow", "improvementHigh")),
        Column("expected", stored("expected", "+.0f"), meaning=_EXPECTED),
        Column("of the ceiling", percent("ofCeiling"), meaning=_OF_CEILING),
        Column("win rate", percent("winRate"), meaning=_WIN_RATE),
        Column("accuracy", percent("accuracy"), meaning=_ACCURACY),
        Column("invalid", lambda row: row.get("invalid"), meaning="unusable answers"),
        Column("HOLD", percent("holdShare"), meaning="of all decisions"),
        *(DOCUMENT_COLUMNS if sized else []),
    ]  # fmt: skip


# Of ``Errors`` as JSON values.
ANSWERS = [
    Column("follows", stored("follows", ".0%"), meaning="an order as the headline says"),
    Column("other market", stored("otherMarket", ".0%"), meaning="an order in a market that the headline does not name"),
    Column("against", stored("against", ".0%"), meaning="an order the other way"),
    Column("HOLD", stored("hold", ".0%")),
]
KINDS = [
    Column("headline", "name"), Column("decisions", "decisions"), *ANSWERS,
    Column("trades", stored("trades", ".0%"), meaning="an order where no direction is said"),
    Column("unusable", stored("unusable", ".0%"), meaning="an answer or an order that was not carried out"),
    Column("$ a decision", stored("usd", "+.1f"), meaning="expected dollars, without the luck of prices"),
    Column("following", stored("followingUsd", "+.1f"), meaning="the same of orders as the headlines say"),
]  # fmt: skip


def _released(one: dict[str, Any]) -> str:
    return "yes" if one["released"] else {FAIL: "refused", PASS: "not confirmed"}.get(one["decision"], "no")


def _trained(title: str, value: Callable[[dict[str, Any]], object]) -> Column:
    """A column that is empty where a generation has trained no version."""
    return Column(title, lambda one: None if one["modelVersion"] is None else value(one))


# Of a generation of the demo.
GENERATIONS = [
    Column("generation", "generation"), Column("played by", "player"), Column("trained", "modelVersion"),
    _trained("from", lambda one: one["parentVersion"] or BASE), _trained("gate", lambda one: one["decision"]),
    _trained("$ an hour", lambda one: None if one["improvement"] is None else f"{one['improvement']:+.0f}"),
    _trained("against", lambda one: one["reference"]), _trained("released", _released), Column("deployed then", "deployed"),
]  # fmt: skip


YES, NO, UNKNOWN = "yes", "no", "unknown"
COLOURS = {
    "candidate": "#1f6fb4",
    "version": "#1f6fb4",
    "base": "#3d3d3d",
    "deployed": "#8a4fa3",
    "parent": "#b07aa1",
    "passed": "#b07aa1",
    "strategy": "#a9a9a9",
}
BETTER_PNL = 0.10
NOTHING_WORDS, READER_WORDS = "doing nothing", "the news reader"
NO_SCRIPTS = "a script that it learned from, as there is none"
UNKNOWN_SCRIPTS = "the scripts that it learned from, as its training did not note them"
Count = Callable[[MarketResult], tuple[int, int]]  # hits and trials in one market


@dataclass(frozen=True)
class Criterion:
    """``met`` is yes, no or unknown."""

    name: str
    met: str
    words: str


def criteria(comparison: Comparison) -> tuple[Criterion, ...]:
    """The four criteria; none when the candidate was not compared."""
    if comparison.compared is None:
        return ()
    ours, theirs = comparison.compared
    # Criteria with the gate's confidence, so that both speak of the same evidence.
    confidence, in_time = comparison.confidence, "of the orders in the direction that the market took over their tick"
    closed = "of the orders closed with a gain or a loss"
    return (
        _better_pnl(ours, theirs, confidence),
        _better_share("better win rate", ours, theirs, lambda one: (one.wins, one.wins + one.losses), closed, confidence),
        _fewer_errors(ours, theirs, confidence),
        _better_share("better timing", ours, theirs, lambda one: (one.predictions_right, one.predictions), in_time, confidence),
    )


def _better_pnl(ours: GateRow, theirs: GateRow, confidence: float) -> Criterion:
    # For a reference that loses, ten percent better means a smaller loss.
    factor = 1 + BETTER_PNL if theirs.pnl.mean >= 0 else 1 - BETTER_PNL
    beyond = paired_interval(ours.pnls_usd, [factor * usd for usd in theirs.pnls_usd], confidence=confidence)
    required = factor * theirs.pnl.mean
    sentence = f"{ours.pnl.mean:+.1f} where {required:+.1f} is asked: {beyond.mean:+.1f} beyond it [{beyond.low:+.1f}, {beyond.high:+.1f}]"
    return Criterion(f"{BETTER_PNL:.0%}+ better P&L", _met(beyond), sentence)


def _fewer_errors(ours: GateRow, theirs: GateRow, confidence: float) -> Criterion:
    errors = ours.invalid + ours.refused, theirs.invalid + theirs.refused
    if not any(errors):
        return Criterion("fewer errors", UNKNOWN, "neither made one: no unusable answer and no refused order")
    of_what = f"of the decisions ({errors[0]} errors against {errors[1]})"
    return _better_share("fewer errors", theirs, ours, lambda one: (one.invalid + one.refused, one.decisions), of_what, confidence)


def _met(beyond: Interval) -> str:
    return YES if beyond.low > 0 else NO if beyond.high <= 0 else UNKNOWN


def _better_share(name: str, higher: GateRow, lower: GateRow, count: Count, of_what: str, confidence: float) -> Criterion:
    """Criterion of the difference of two shares in the same markets, clustered by market."""
    counts = [[count(result) for result in row.results] for row in (higher, lower)]
    if not all(any(trials for _, trials in row) for row in counts):
        return Criterion(name, UNKNOWN, "one of the two traded in no market")
    first, second = (linearised([hits for hits, _ in row], [trials for _, trials in row]) for row in counts)
    gain = mean_interval(first - second, confidence=confidence)
    points = f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return Criterion(name, _met(gain), f"{points} {of_what}")


def _footer(game: Game, analyses: int) -> str:
    """What the numbers of a report mean, in the game that was played."""
    best = CEILING_OF_GAME[game.name]
    ahead = "" if best.mandate == ONE_TICK else " for one tick ahead"
    ceiling = f"The ceiling is the best play{ahead} from what the prompt shows ({best.name}), without foresight. "
    stakes = "; players stake different dollars" if game.names_size else " with the same stake"
    return (
        "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences are paired market by market. The gate may "
        f"look at a growing benchmark {analyses} times: intervals of differences keep 95 % over all looks together, p-values of the pairs "
        "are corrected for the looks and for each other (Holm). The other rows describe and are not corrected for their number. All "
        "versions meet the same markets, and nothing is corrected for how many were tried in them: of forty that are no better, one may "
        "pass by chance. The oracle knows the future, the news reader how often news are true: what foresight and honest reading can earn"
        f"{stakes}. {ceiling}{MARKET_FIT}"
    )


def results_version(comparison: Comparison, verdict: GateVerdict, min_improvement: float, markets: Mapping[str, str]) -> str:
    """Hash of every result, its market, and the decision."""
    # With each market's fingerprint: the same money in a market that came out differently is another report.
    results = {
        row.player: [[r.snapshot, markets[r.snapshot], r.pnl_usd, r.refused, list(r.equity_usd)] for r in row.results]
        for row in comparison.rows
    }
    return content_version([results, comparison.candidate, comparison.reference, min_improvement, verdict.decision])


def rows_of(comparison: Comparison, verdict: GateVerdict) -> list[dict[str, Any]]:
    """One object per player, with the game that all played; the candidate's also holds checks, pairs and success criteria."""
    decided: dict[str, Any] = {
        "checks": [asdict(check) for check in verdict.checks],
        "contests": [_pair_document(pair, comparison) for pair in comparison.pairs],
        "criteria": [asdict(criterion) for criterion in criteria(comparison)],
    }
    if comparison.candidate is not None:
        decided["standing"] = [asdict(rival) for rival in standing(comparison)]
        decided["holdFloor"] = hold_floor(comparison)
        decided["errors"] = comparison.row(comparison.candidate).errors
    played = {"game": comparison.game.name}
    return [row.document | played | (decided if row.player == comparison.candidate else {}) for row in comparison.rows]


@dataclass(frozen=True)
class Rival:
    """A player that a version is held against: ``words`` name it. The difference is in dollars; None where it did not play.

    ``risk`` compares it with the version in words, where both play at the same stake.
    """

    words: str
    player: str | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    risk: str = ""


def standing(comparison: Comparison) -> list[Rival]:
    """The candidate against doing nothing, the best script that it learned from, and the news reader, in the same markets.

    In a game whose answers choose dollars also against the best script and the news reader at the candidate's mean stake.
    """
    ours = comparison.row(comparison.candidate or "")
    rows = {row.player: row for row in comparison.rows}
    scripts = sorted((name for name in comparison.learned_from or () if name in rows), key=lambda name: -rows[name].pnl.mean)
    script = scripts[0] if scripts else None
    none = NO_SCRIPTS if comparison.learned_from is not None else UNKNOWN_SCRIPTS
    best = none if script is None else f"{script}, the best script that it learned from"
    at_stake = rivals_at_stake(comparison)
    rivals = list[Rival]()
    for words, player in [(NOTHING_WORDS, NOTHING), (best, script), (READER_WORDS, NEWS_READER), *at_stake]:
        if player not in rows:
            rivals.append(Rival(words, player))
            continue
        gain = paired_interval(ours.pnls_usd, rows[player].pnls_usd, confidence=comparison.confidence)
        risk = risk_words(ours, rows[player]) if (words, player) in at_stake else ""
        rivals.append(Rival(words, player, gain.mean, gain.low, gain.high, risk))
    return rivals


def stored_standing(row: Mapping[str, Any]) -> str:
    """``standing_words`` of a version's row in a stored report, or a sentence on a report that has none."""
    if "standing" not in row:
        return f"{row['model']}: its report is from before it was held against doing nothing, a script and the news reader."
    return standing_words(row["model"], row["markets"], [Rival(**rival) for rival in row["standing"]])


def standing_words(version: str, markets: int, rivals: Iterable[Rival], analyses: int = len(ANALYSES)) -> str:
    """A sentence on a version's difference to each of ``rivals``."""
    clauses = []
    for rival in rivals:
        if rival.difference is None or rival.low is None or rival.high is None:
            clauses.append(f"is not compared with {rival.words}{'' if rival.player is None else ', which did not play'}")
            continue
        found = "earns more than" if rival.low > 0 else "earns less than" if rival.high < 0 else "is not shown to differ from"
        risk = f"; {rival.risk}" if rival.risk else ""
        clauses.append(f"{found} {rival.words} ({rival.difference:+.0f}, {rival.low:+.0f} to {rival.high:+.0f}{risk})")
    corrected = f", corrected for {analyses} looks" if analyses > 1 else ""
    return f"{version} {'; '.join(clauses)}. Dollars in each of the same {markets} markets, paired 95 % intervals{corrected}."


def ceiling_words(row: Mapping[str, Any]) -> str:
    """A sentence on a row's expected dollars and its share of the ceiling, or on why they are not known."""
    if "ofCeiling" not in row:
        return f"{row['model']}: its report is from before expected dollars were computed."
    if row["ofCeiling"] is None:
        return f"{row['model']}: its expected dollars are not known, as its decisions are not on this machine."
    return (
        f"The decisions of {row['model']} bring {row['expected']:+.0f} dollars an hour on average, without the luck of prices: "
        f"{100 * row['ofCeiling']:.0f} % ({100 * row['ofCeilingLow']:.0f} to {100 * row['ofCeilingHigh']:.0f} %) of the best "
        "play from what the prompt shows."
    )


def markdown(comparison: Comparison, verdict: GateVerdict) -> str:
    """The report as a Markdown document of one screen."""
    columns = gate_columns(comparison.reference, comparison.game.names_size)
    parts = [
        f"**{verdict.decision.replace('_', ' ')}**: {verdict.reason}",
        markdown_rows(columns, comparison.rows),
        legend(columns),
    ]
    if (warning := hold_floor(comparison)) is not None:
        parts.insert(1, f"**{warning}**")
    if comparison.candidate is not None:
        parts.insert(1, standing_words(comparison.candidate, comparison.markets, standing(comparison), comparison.analyses))
        parts.insert(2, ceiling_words(comparison.row(comparison.candidate).document | {"game": comparison.game.name}))
    parts += [f"Before the gate's markets: {check.words}." for check in verdict.checks if check.name == KEPT and check.found == PASS]
    if comparison.candidate is not None and (kinds := comparison.row(comparison.candidate).errors):
        parts += [f"Answers of {comparison.candidate} by kind of headline:", markdown_rows(KINDS, kinds)]
    if comparison.pairs:
        parts.append(markdown_rows(contest_columns(comparison.reference), comparison.pairs))
        parts.append(markdown_rows(CRITERIA, criteria(comparison)))
    played = "" if comparison.game == ONE_TICK_GAME else f", all playing {comparison.game.name}"
    parts.append(f"{comparison.markets} unseen markets{played}. {_footer(comparison.game, comparison.analyses)}")
    return "\n\n".join(parts) + "\n"


def _pair_document(pair: Pair, comparison: Comparison) -> dict[str, Any]:
    """A pair as JSON values: dollars an hour, effect in standard deviations, shares 0..1."""
    difference = pair.paired.difference
    return {
        "rival": pair.b, "role": comparison.row(pair.b).role,
        "difference": difference.mean, "low": difference.low, "high": difference.high, **ends("effect", pair.paired.effect),
        "betterShare": pair.paired.superiority.mean, "p": pair.paired.p, "adjustedP": pair.adjusted_p,
    }  # fmt: skip


def benchmark_png(comparison: Comparison, verdict: GateVerdict) -> bytes:
    """A comparison as a PNG of about 100 kB: P&L, paired differences, curves, risk."""
    figure = plots.new_figure(13.5, 7.4, 80)
    places = [["means", "pairs", "hour"], ["means", "sharpe", "drawdown"]]
    panels = figure.subplot_mosaic(places, width_ratios=(1.15, 1.0, 1.0), height_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.11, right=0.93, bottom=0.07, top=0.86, wspace=0.3, hspace=0.28)
    heading = f"{verdict.decision.replace('_', ' ').upper()}: {verdict.reason}"
    figure.text(0.02, 0.97, "\n".join(textwrap.wrap(heading, 170)[:3]), fontsize=9.5, va="top")
    strategies = sorted((row for row in comparison.rows if row.role == STRATEGY), key=lambda row: -row.pnl.mean)
    models = [row for row in comparison.rows if row.role != STRATEGY]
    marks = [interval_mark(_label(row), row.pnl, row.role) for row in [*models, *strategies]]
    plots.draw_intervals(panels["means"], marks, title="Mean P&L, 95 % interval", unit="dollars of a market hour")
    _draw_differences(panels["pairs"], comparison)
    _draw_course(panels["hour"], comparison.rows, lambda row: row.pnl_path, "Mean P&L so far, dollars")
    shown = models or comparison.rows
    _draw_course(panels["sharpe"], shown, lambda row: row.sharpe_path, "Mean Sharpe ratio so far")
    _draw_course(panels["drawdown"], shown, lambda row: row.drawdown_path, "Mean dollars below the peak so far")
    plots.plain_axes(panels.values())
    return plots.png_of(figure)


def interval_mark(label: str, interval: Interval, role: str, marker: str = "o") -> plots.IntervalMark:
    return plots.IntervalMark(label, interval.mean, interval.low, interval.high, COLOURS[role], marker)


def write_plot(png: bytes, path: Path) -> Path:
    """Put a picture at ``path``, complete or not at all; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)
    return path


def _label(row: GateRow) -> str:
    return f"{row.player} ({row.role})" if row.role not in (row.player, STRATEGY) else row.player


def _draw_differences(axes: Any, comparison: Comparison) -> None:
    if comparison.compared is None:
        plots.draw_sentence(axes, "not compared")
        return
    ours, theirs = comparison.compared
    differences = [a - b for a, b in zip(ours.pnls_usd, theirs.pnls_usd, strict=True)]
    better, gain = sum(difference > 0 for difference in differences), ours.improvement
    mean = None if gain is None else interval_mark(f"mean {gain.mean:+.0f}, 95 % interval", gain, CANDIDATE)
    title = f"{ours.player} - {theirs.player}: better in {better} of {len(differences)} markets"
    plots.draw_differences(axes, differences, title=title, mean=mean)


def _draw_course(axes: Any, rows: Sequence[GateRow], path_of: Callable[[GateRow], Sequence[float | None]], title: str) -> None:
    curves = [(row.player, path_of(row), COLOURS[row.role], row.role == STRATEGY) for row in rows]
    plots.draw_curves(axes, curves, step=PRESETS[PRESET].tick_seconds / 60, title=title)
