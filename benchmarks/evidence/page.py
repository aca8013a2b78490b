"""Renders a page of evidence: one table of all players, the learning curve, generations without a version, and limits."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from babylon_rl.evaluation.gate import PASS
from babylon_rl.evaluation.report import KINDS
from babylon_rl.evaluation.stakes import DOCUMENT_COLUMNS
from babylon_rl.evaluation.statistics.intervals import FEWEST_TO_RESAMPLE, Interval
from babylon_rl.market.simulation.agents import STAKE_USD
from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.reporting.numbers import Column, legend, markdown_rows, markdown_table
from benchmarks.evidence.results import (
    EXPECTEDS,
    PNLS,
    Document,
    OverSeeds,
    Point,
    at_stake,
    base_of,
    ceiling,
    difference,
    goes_on_otherwise,
    last_released,
    newest,
    over_seeds,
    parent_of,
    points,
    scripts,
    spread,
)

COLUMNS = ("seed", "generation", "player", "P&L", "over the base", "over its parent", "expected", "of the ceiling", "HOLD", "gate, markets")
GENERATIONS = 5  # unless others are asked for
NEAR = 0.9  # of the ceiling
WANTED_USD = (50, 100, 200)  # improvements an hour for which the page says how many markets show them


def table(results: Sequence[Document]) -> str:
    """All players in the same markets, as a Markdown table."""
    lines = [["", "0", *_figures(base_of(results[0])), ""]]
    lines += [_point(result, point) for result in results for point in points(result)[1:]]
    best = ceiling(results)
    lines += [["", "", *_figures(row), ""] for row in ([] if best is None else [best]) + scripts(results)]
    return markdown_table(COLUMNS, lines)


def _in_front(results: Sequence[Document]) -> list[tuple[Document, Document]]:
    """Each seed's result with the row of its last released version, else of its newest."""
    return [(result, version) for result in results if (version := last_released(result) or newest(result)) is not None]


def stakes(results: Sequence[Document]) -> str:
    """The newest version of each seed beside the scripts at its mean stake; empty in games with one fixed stake."""
    rows = [
        {"seed": result["seed"], **row}
        for result, version in _in_front(results)
        if (scripted := at_stake(result))
        for row in [version, *scripted]
    ]
    if not rows:
        return ""
    columns = [
        Column("seed", "seed"),
        Column("player", "model"),
        Column("P&L", lambda row: _signed(row["pnl"], row["low"], row["high"])),
        *DOCUMENT_COLUMNS,
    ]
    heading = "Each seed's last released version beside the scripts at its own mean stake:"
    return f"\n{heading}\n\n{markdown_rows(columns, rows)}\n\n{legend(columns)}\n"


def kinds(results: Sequence[Document]) -> str:
    """Answers by kind of headline of each seed's last released version; empty where their decisions were not at hand."""
    found = _in_front(results)
    rows = [{"seed": result["seed"], "model": version["model"], **kind} for result, version in found for kind in version.get("errors", [])]
    if not rows:
        return ""
    columns = [Column("seed", "seed"), Column("player", "model"), *KINDS]
    return f"\nAnswers of each seed's last released version by kind of headline:\n\n{markdown_rows(columns, rows)}\n\n{legend(columns)}\n"


def page(
    results: Sequence[Document],
    players: str,
    curve: str,
    game: str,
    ungated: Mapping[int, Document] = MappingProxyType({}),
    first: tuple[str, int] | None = None,
) -> str:
    """The page as Markdown.

    ``players`` and ``curve`` are the file names of its plots. ``ungated`` are results without the gate by seed, of seeds that went on
    otherwise. ``first`` is another game with the number of first generations that play it.
    """
    generations, markets = len(results[0]["generations"]), base_of(results[0])["markets"]
    asked, other = "" if generations == GENERATIONS else f" --generations {generations}", ""
    if first is not None:
        asked += f" --begin {first[0]}:{first[1]}"
        other = f"The first {first[1]} generations play {first[0]}, in the gate too; in the tables all play {game}.\n"
    minutes = max(result["processorSeconds"] for result in results) / 60
    seeds = f"seed{'s' * (len(results) > 1)} {', '.join(str(result['seed']) for result in results)}"
    without = [_failure(point) for result in results for point in points(result)[1:] if point.row is None]
    unusable = sum(row["invalid"] for result in results for row in result["standings"])
    begun, ended = (dict.fromkeys(commit for result in results if (commit := result.get(name))) for name in ("begunAt", "commit"))
    in_numbers = sorted({result["numbers"] for result in results if result.get("numbers")})
    at = f"begun at {', '.join(begun)}, ended " if begun and begun != ended else ""
    at = f" ({at}at {', '.join(ended)})" if ended else ""
    with_numbers = f", in {' and '.join(in_numbers)}" if in_numbers else ""
    return f"""# Evidence in the game {game}

Made by `python -m benchmarks.evidence --game {game}{asked}`{at}: {generations} generations
with {seeds}, up to {minutes:.0f} minutes of processor time a seed{with_numbers}.
In each generation agents play {results[0]["windows"]} new hours, the built-in rule judges the hours, a version is trained from the
newest one that did not fail the gate (at first from the base), and it plays the benchmark.
{other}
{_headline(results)}

The table: dollars an hour in the same {markets} unseen markets, one player alone in each, models at temperature 0, with 95 % intervals over
markets. Differences are paired market by market; those over the base hold over all looks of the gate. An inconclusive gate plays more
markets where they may decide ([0007](../decisions/0007-gate.md)).
Expected: dollars an hour that the decisions bring on average, without the luck of prices. Of the ceiling: these as a share of the expected
dollars of the best play from what the prompt shows, paired by market. Both are a dash for players that know more than the prompt. Unusable
answers of all players: {unusable}.

{table(results)}
{stakes(results)}{kinds(results)}
![Mean P&L with 95 % intervals of all players]({players})

## The learning curve

![P&L by generation, a line per seed, with the scripted players as bands]({curve})

{_learning(results)}

## Released versions

{_released(results)}

{without_gate(results, ungated)}
{"".join(f"{line}{chr(10)}" for line in without)}
An interval over markets is about these versions in other markets, one over seeds (Student's below {FEWEST_TO_RESAMPLE}) about other
trainings.

## What this does not show

* Markets are simulated, and their news carries a signal by construction ([market fit](market-fit.md)).
* The first generation learns mostly from scripted strategies. Later ones learn from replayed answers, whose scores end with one tick.
* The gate's markets have 18 headlines about stocks. In an edition with 36 a version read worse
  ([unseen texts](../decisions/0034-ceiling.md#unseen-texts)).
* All versions meet the same markets: a version that is better in them is better in markets of this kind, not in a real game's.
"""


def _released(results: Sequence[Document]) -> str:
    """Released versions beside the ceiling and the scripts; setbacks among them; refused versions."""
    last = {result["seed"]: row for result in results if (row := last_released(result)) is not None}
    if not last:
        return "No version was released."
    near = sum((row.get("ofCeiling") or 0.0) >= NEAR for row in last.values())
    lines = [f"* The last released version stands at {_percent(NEAR)} of the ceiling or more with {near} of {len(results)} seeds."]
    rivals = _rivals(results)
    for name, scripted in rivals.items():
        pairs = {seed: (row, scripted[seed]) for seed, row in last.items() if seed in scripted}
        lines.append(f"* Over {name}: {_over_all(pairs, PNLS)}.")
        if _have_expecteds(row for pair in pairs.values() for row in pair):
            lines[-1] += f" Expected: {_over_all(pairs, EXPECTEDS)}."
    teachers = [scripted[min(last)] for name, scripted in rivals.items() if name in STRATEGIES and min(last) in scripted]
    if teachers and (best := ceiling(results)) is not None:
        lines.append(_ceiling_over(best, max(teachers, key=lambda row: row["pnl"])))
    compared = [
        (point, difference(point.row, parent))
        for result in results
        for point in points(result)[1:]
        if point.row is not None and point.about["released"] and (parent := parent_of(result, point)) is not None
    ]
    worse = [f"; seed {point.seed}, generation {point.generation} {_interval(over)}" for point, over in compared if over.high < 0]
    lines.append(f"* Of {len(compared)} released versions {len(worse)} are worse than their parent beyond the interval{''.join(worse)}.")
    refused = [
        f"seed {point.seed}, generation {point.generation} ({_refusal(point.about)})"
        for result in results
        for point in points(result)[1:]
        if point.row is not None and not point.about["released"]
    ]
    lines.append(f"* Not released: {', '.join(refused) or 'none'}.")
    lines += [f"* Seed {result['seed']}: {one['warning']}" for result in results for one in result["generations"] if one.get("warning")]
    return "\n".join(lines)


def _have_expecteds(rows: Iterable[Document]) -> bool:
    return all(row.get(EXPECTEDS) for row in rows)


def _ceiling_over(best: Document, teacher: Document) -> str:
    """The most that can be shown over the best script in these markets."""
    expected = f", expected {_interval(difference(best, teacher, EXPECTEDS))}" if _have_expecteds((best, teacher)) else ""
    return f"* At most, by the best play from the prompt, over {teacher['model']}: {_interval(difference(best, teacher))}{expected}."


def _over_all(pairs: Mapping[int, tuple[Document, Document]], of: str) -> str:
    """A difference over all seeds with both intervals, and how many seeds are above 0; one seed has no interval over seeds."""
    found = over_seeds(pairs, of)
    if len(found.each) == 1:
        return f"{_interval(found.markets)} over markets"
    above = sum(one.mean > 0 for one in found.each.values())
    return f"{_interval(found.markets)} over markets, {_ends(found.seeds)} over seeds; above it with {above} of {len(found.each)} seeds"


def _rivals(results: Sequence[Document]) -> dict[str, dict[int, Document]]:
    """Rows of each script by seed: at the version's own stake, where the game has several."""
    rows: dict[str, dict[int, Document]] = {}
    for result in results:
        for row in at_stake(result) or scripts(results):
            rows.setdefault(row["model"].partition(" at ")[0], {})[result["seed"]] = row
    return rows


def without_gate(results: Sequence[Document], ungated: Mapping[int, Document]) -> str:
    """Table of the versions that agents have in the end, with and without the gate."""
    rows = []
    for result in results:
        alone = ungated.get(result["seed"], None if goes_on_otherwise(result) else result)
        without = ["not run", "-", "-"] if alone is None else _end(newest(alone) or base_of(alone))
        rows.append([str(result["seed"]), *_end(last_released(result) or base_of(result)), *without])
    columns = ("seed", "with the gate", "expected", "of the ceiling", "every version released", "expected", "of the ceiling")
    return f"In front of agents after the last generation:\n\n{markdown_table(columns, rows)}\n"


def _end(row: Document) -> list[str]:
    return [f"{row['model']}, {_signed(row['pnl'], row['low'], row['high'])}", *_expected(row)]


def _headline(results: Sequence[Document]) -> str:
    last = {result["seed"]: (row, base_of(result)) for result in results for row in [newest(result)] if row is not None}
    if not last:
        return "**No generation of any seed brought a version.** What happened stands below."
    better = sum(row["improvementLow"] > 0 for row, _ in last.values())
    differences = over_seeds(last)
    each = {seed: _signed(row["improvement"], row["improvementLow"], row["improvementHigh"]) for seed, (row, _) in last.items()}
    earns = {row["model"]: f"{row['pnl']:+.0f}" for row in scripts(results)}
    teacher = max((row for row in scripts(results) if row["model"] in STRATEGIES), key=lambda row: row["pnl"])["model"]
    stake = (
        f", with ${STAKE_USD:,.0f} an order as in the plots; at each version's own stake they stand below"
        if any(map(at_stake, results))
        else ""
    )
    return (
        f"**The interval of the newest version's improvement over the base lies above 0 with {better} of {len(results)} seeds.**\n\n"
        f"* Newest version over the base, dollars an hour: {_seeds(each, differences)}\n"
        f"* For scale: doing nothing earns {earns['nothing']}, the best script that they learned from ({teacher}) {earns[teacher]}, "
        f"the news reader {earns['news-reader']}{stake}.\n* {_needed(last.values())}"
    )


def _needed(pairs: Iterable[tuple[Document, Document]]) -> str:
    """The number of markets that shows a wanted improvement in one analysis of the gate."""
    from babylon_rl.evaluation.gate import ANALYSES, FEWEST_MARKETS, confidence_of
    from babylon_rl.evaluation.statistics.intervals import POWER, markets_needed

    widest = max((spread(version, base) for version, base in pairs), key=lambda found: found.between)
    confidence = confidence_of(len(ANALYSES))
    takes = ", ".join(f"{markets_needed(usd, widest.of_means(), confidence)} for ${usd:.0f}" for usd in WANTED_USD)
    return (
        f"With {_percent(POWER)} power a look of the gate needs so many paired markets: {takes} an hour (at the widest spread seen, "
        f"${widest.between:.0f}), and {FEWEST_MARKETS} at least."
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
            lines.append(f"* Generation {generation} over generation 1: {_seeds(each, differences)}")
    lines += [_setback(result, point) for result in results for point in points(result)[2:] if _is_worse(result, point)]
    return "\n".join(lines) or "No seed has two versions to compare."


def _seeds(each: Mapping[int, str], found: OverSeeds) -> str:
    """Every seed's difference, and their mean with both intervals."""
    each_seed, number = ", ".join(f"seed {seed} {interval}" for seed, interval in each.items()), len(each)
    if number == 1:
        return f"{each_seed}. One seed says nothing of another training."
    undecided = ": it holds 0, so a gain by training again is not shown" if found.seeds.low <= 0 <= found.seeds.high else ""
    return (
        f"{each_seed}. Mean of {number} seeds {found.markets.mean:+.0f}: {_ends(found.markets)} over markets, "
        f"{_ends(found.seeds)} over seeds{undecided}."
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
        f"{_percent(point.row['holdShare'])} of its decisions. The gate, which compares it with {point.about['reference']}, says "
        f"{point.about['decision'].replace('_', ' ')}."
    )


def _point(result: Document, point: Point) -> list[str]:
    if point.row is None:
        return [str(point.seed), str(point.generation), "no version", *["-"] * 6, "not reached"]
    parent = parent_of(result, point)
    figures = _figures(point.row, None if parent is None else difference(point.row, parent))
    return [str(point.seed), str(point.generation), *figures, _verdict(point.about)]


def _verdict(about: Document) -> str:
    return f"{about['decision'].replace('_', ' ')}, {about['gateMarkets']}"


def _refusal(about: Document) -> str:
    return f"{_verdict(about)}, not confirmed" if about["decision"] == PASS else _verdict(about)


def _figures(row: Document, over_parent: Interval | None = None) -> list[str]:
    improvement = row["improvement"]
    return [
        row["model"],
        _signed(row["pnl"], row["low"], row["high"]),
        "" if improvement is None else _signed(improvement, row["improvementLow"], row["improvementHigh"]),
        "" if over_parent is None else _interval(over_parent),
        *_expected(row),
        _percent(row["holdShare"]),
    ]


def _expected(row: Document) -> tuple[str, str]:
    if row.get("ofCeiling") is None:  # of decisions that were not at hand
        return "-", "-"
    share, low, high = (_percent(row[name]) for name in ("ofCeiling", "ofCeilingLow", "ofCeilingHigh"))
    return f"{row['expected']:+.0f}", f"{share} ({low} to {high})"


def _failure(point: Point) -> str:
    about = point.about
    return f"* Seed {point.seed}, generation {point.generation}, played by {about['player']}: no version. {about['failure']}"


def _ends(found: Interval) -> str:
    return f"{found.low:+.0f} to {found.high:+.0f}"


def _interval(found: Interval) -> str:
    return _signed(found.mean, found.low, found.high)


def _signed(mean: float, low: float, high: float) -> str:
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
