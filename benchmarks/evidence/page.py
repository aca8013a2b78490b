"""Renders docs/evidence/evidence.md: one table of all players, the learning curve, each generation, and limits."""

from collections.abc import Iterable, Mapping, Sequence

from babylon_rl.evaluation.statistics.intervals import FEWEST_TO_RESAMPLE, Interval
from babylon_rl.reporting.numbers import markdown_table
from benchmarks.evidence.results import (
    Document,
    OverSeeds,
    Point,
    base_of,
    difference,
    newest,
    over_seeds,
    parent_of,
    points,
    scripts,
    spread,
)

COLUMNS = (
    "seed", "generation", "player", "P&L, $ an hour", "over the base", "over its parent", "win rate", "accuracy", "invalid", "HOLD",
    "markets", "gate",
)  # fmt: skip
WANTED_USD = (50, 100, 200)  # improvements an hour for which the page says how many markets show them


def table(results: Sequence[Document]) -> str:
    """All players in the same markets, as a Markdown table."""
    lines = [_point(result, point) for result in results for point in points(result)]
    lines += [["", "", *_figures(row), str(row["markets"]), ""] for row in scripts(results)]
    return markdown_table(COLUMNS, lines)


def page(results: Sequence[Document], players: str, curve: str) -> str:
    """The page as Markdown; ``players`` and ``curve`` are the file names of its plots."""
    generations, markets = len(results[0]["generations"]), base_of(results[0])["markets"]
    minutes = max(result["processorSeconds"] for result in results) / 60
    return f"""# Evidence

Made by `make evidence`: {generations} generations with each of {len(results)} seeds. In each, agents play {results[0]["windows"]} new hours
(scripted ones and one that asks the newest version, in generation 1 the base), the hours are judged, a version is trained on them from the
one before, and it plays the benchmark. Seeds share nothing but the base and what it earned up to the first look that can pass a version,
and in a first confirmation: that was played once. It took up to {minutes:.0f} minutes of processor time a seed, with that.

Everybody below played the same {markets} unseen market hours (companies, questions and headlines that no training hour holds), alone
in each, models at temperature 0. Dollars an hour with 95 % intervals by bootstrap over markets; differences are paired market by market.
Those over the base hold over all looks that the gate may take at a growing benchmark; all others are for one look. *gate* says over how
many markets its verdict is: it looks on at more of them while it is undecided.

A mean over seeds has two intervals. The one over markets is about these trained versions in other markets of the kind, the one over seeds
(Student's below {FEWEST_TO_RESAMPLE} seeds) about other trainings in these markets: what to expect of training anew.

{_headline(results)}

{table(results)}

![Mean P&L with 95 % intervals of all players]({players})

## The learning curve

![P&L by generation, a line per seed, with the scripted players as bands]({curve})

{_learning(results)}

What became of every generation:

{chr(10).join(_story(point) for result in results for point in points(result)[1:])}

## What this does not show

Scores are the heuristic's unless JUDGE_MODEL was set; the markets are simulated, and their news carries a signal by construction; most
training sequences were composed by scripted strategies, whose best player bounds what can be imitated. The benchmark's markets are the same
for all versions and generations: a version that is better in them is better in markets of this kind, not in a real game's.
"""


def _headline(results: Sequence[Document]) -> str:
    last = {result["seed"]: (row, base_of(result)) for result in results for row in [newest(result)] if row is not None}
    if not last:
        return "**No generation of any seed brought a version.** What happened stands below."
    better = sum(row["improvementLow"] > 0 for row, _ in last.values())
    differences = over_seeds(last)
    each = {seed: _signed(row["improvement"], row["improvementLow"], row["improvementHigh"]) for seed, (row, _) in last.items()}
    return (
        f"**The interval of the newest version's improvement over the base lies above 0 with {better} of {len(results)} seeds.**\n\n"
        f"* Over the base, dollars an hour: {_seeds(each, differences, 'versions')}\n* {_needed(last.values())}"
    )


def _needed(pairs: Iterable[tuple[Document, Document]]) -> str:
    """The number of markets that shows a wanted improvement in one analysis of the gate."""
    from babylon_rl.evaluation.gate import ANALYSES, FEWEST_MARKETS, confidence_of
    from babylon_rl.evaluation.statistics.intervals import POWER, snapshots_needed

    widest = max((spread(version, base) for version, base in pairs), key=lambda found: found.between)
    confidence = confidence_of(len(ANALYSES))
    takes = ", ".join(f"{snapshots_needed(usd, widest, confidence=confidence)} for ${usd:.0f}" for usd in WANTED_USD)
    return (
        f"To show an improvement with {_percent(POWER)} power, a look of the gate needs so many paired markets: {takes} an hour (at the "
        f"widest spread between markets seen, ${widest.between:.0f}). No version passes with fewer than {FEWEST_MARKETS}."
    )


def _learning(results: Sequence[Document]) -> str:
    """Improvements of later generations over the first, over the seeds that have both."""
    lines = []
    for generation in range(2, len(results[0]["generations"]) + 1):
        curves = {result["seed"]: points(result) for result in results}
        pairs = {seed: (curve[generation].row, curve[1].row) for seed, curve in curves.items()}
        both = {seed: (later, first) for seed, (later, first) in pairs.items() if later is not None and first is not None}
        # Only seeds in which both generations brought a version can be compared.
        if both:
            differences = over_seeds(both)
            each = {seed: _interval(interval) for seed, interval in differences.each.items()}
            lines.append(f"* Generation {generation} over generation 1, dollars an hour: {_seeds(each, differences, 'pairs of versions')}")
    lines += [_setback(result, point) for result in results for point in points(result)[2:] if _is_worse(result, point)]
    return "\n".join(lines) or "No seed has two versions to compare."


def _seeds(each: Mapping[int, str], found: OverSeeds, what: str) -> str:
    """Every seed's difference, and their mean with both intervals."""
    each_seed, number = ", ".join(f"seed {seed} {interval}" for seed, interval in each.items()), len(each)
    if number == 1:
        return f"{each_seed}. One seed says nothing of another training."
    undecided = ": it holds 0, so this does not show that training anew does better" if found.seeds.low <= 0 <= found.seeds.high else ""
    return (
        f"{each_seed}. Mean of {number} seeds {found.markets.mean:+.0f}: {_ends(found.markets)} over markets for these {number} {what}, "
        f"{_ends(found.seeds)} over seeds (wide, as {number} seeds are few){undecided}."
    )


def _is_worse(result: Document, point: Point) -> bool:
    parent = parent_of(result, point)
    return point.row is not None and parent is not None and difference(point.row, parent).high < 0


def _setback(result: Document, point: Point) -> str:
    """A sentence on a generation that is worse than its own parent."""
    parent = parent_of(result, point)
    assert point.row is not None and parent is not None
    return (
        f"* Seed {point.seed}, generation {point.generation} is a step back: {point.row['model']} earns "
        f"{_interval(difference(point.row, parent))} dollars an hour against its parent {parent['model']}, and holds in "
        f"{_percent(point.row['holdShare'])} of its decisions. The gate, which compares it with {point.about['reference']}, says: "
        f"{_verdict(point.about)}."
    )


def _point(result: Document, point: Point) -> list[str]:
    if point.row is None:
        return [str(point.seed), str(point.generation), "no version", *["-"] * 8, "not reached"]
    parent = parent_of(result, point) if point.generation else None
    figures = _figures(point.row, None if parent is None else difference(point.row, parent))
    gate = _verdict(point.about) if point.generation else ""
    return [str(point.seed), str(point.generation), *figures, str(point.row["markets"]), gate]


def _verdict(about: Document) -> str:
    return f"{about['decision'].replace('_', ' ')}, {about['gateMarkets']} markets"


def _figures(row: Document, over_parent: Interval | None = None) -> list[str]:
    improvement = row["improvement"]
    return [
        row["model"],
        _signed(row["pnl"], row["low"], row["high"]),
        "" if improvement is None else _signed(improvement, row["improvementLow"], row["improvementHigh"]),
        "" if over_parent is None else _interval(over_parent),
        _percent(row["winRate"]),
        _percent(row["accuracy"]),
        str(row["invalid"]),
        _percent(row["holdShare"]),
    ]


def _story(point: Point) -> str:
    about = point.about
    where = f"* Seed {point.seed}, generation {point.generation}, played by {about['player']}:"
    if point.row is None:
        return f"{where} no version. {about['failure']}"
    own = 1 - (about["scriptedShare"] or 0)
    trained = f"{about['sequences']} sequences, {own:.0%} of them {about['player']}'s own answers"
    return f"{where} {point.row['model']} ({trained}), **{about['decision'].replace('_', ' ')}**. {about['reason']}"


def _ends(found: Interval) -> str:
    return f"{found.low:+.0f} to {found.high:+.0f}"


def _interval(found: Interval) -> str:
    return _signed(found.mean, found.low, found.high)


def _signed(mean: float, low: float, high: float) -> str:
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
