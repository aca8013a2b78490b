"""Capacity model and its check: `python -m benchmarks.capacity [--check] [--write]` prints the tables of docs/explanation/capacity.md.

--check measures this machine (capacity_runs.py) and keeps costs and real runs in benchmarks/capacity.json. Without it the kept measurement
is read. The model's seconds are compared with these runs and with those of Celery workers, which `python -m benchmarks.scale_test --write`
keeps; the exit code is 1 when one is off by more than 15 %. --write puts the tables of rates and tiers, and the plot, into the docs.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from babylon_rl.reporting.numbers import markdown_table
from babylon_rl.reporting.plots import GREY, SERIES, new_figure, plain_axes, png_of
from babylon_rl_tests.scale.results import SPEED
from benchmarks.capacity_model import Costs, Hour, Limits, Site, Steady, backfill_s, scoring_span_s, steady
from benchmarks.capacity_runs import HOURS_PER_RUN, ORDERS, ROW_BYTES, measure

ROOT = Path(__file__).parents[1]
KEPT, PAGE, PICTURE = Path(__file__).with_suffix(".json"), ROOT / "docs/explanation/capacity.md", ROOT / "docs/images/capacity.png"
PRICES = ROOT / "docs/explanation/costs.md"
BOUND = 0.15
# Of the scale test's runs. ORDERS and HOURS_PER_RUN are the same there; an hour has 5 trajectories.
CELERY_CONCURRENCY = 1
# Seconds of one core, measured elsewhere: a trajectory in the CPU trainer with KL_PENALTY (costs.md, 119 for 1,000); benchmark and
# confirmation of a version, at most (performance.md, of the demo: 116 s by the clock on two cores). A batch of TRAINING_MAX_TRAJECTORIES.
TRAIN_ROW_S, VERSION_S, BATCH_ROWS = 0.119, 2 * 116.0, 10_000
RATES = (10_000, 100_000, 1_000_000)
# Requests and tokens a minute of gpt-4o-mini by OpenAI's usage tier (platform.openai.com/docs/models/gpt-4o-mini); TIER is the default.
TIERS = {1: (500, 200_000), 2: (5_000, 2_000_000), 3: (5_000, 4_000_000), 4: (10_000, 10_000_000), 5: (30_000, 150_000_000)}
TIER = 2
ROWS_OF_AN_AGENT = 8  # an hour, of the recorded game
DATABASE_CORES = 1  # of the projections, on a machine of its own
DAYS_KEPT = dict(zip(RATES, (30, 7, 1), strict=True))  # in the database, until they are archived: last section of the page
MONTH_H, YEAR_DAYS = 730, 365
# Dollars of a core for an hour, of a gigabyte of the database's disk and of object storage for a month: round figures, each an option.
USD = {"core_hour": 0.05, "gb_month": 0.12, "archive_gb_month": 0.025}
SHOWN = ("openai/gpt-4o-mini", "openai/gpt-4.1")


# --- the model's statements


def kept_measurement(file: Path = KEPT) -> dict[str, Any]:
    """The measurement of the last --check; ends the program if that did not measure all that the model needs."""
    kept: dict[str, Any] = json.loads(file.read_text())
    if missing := {"write_row_s", "crowded", "one_place"} - kept.keys():
        raise SystemExit(f"{file.name} lacks {', '.join(sorted(missing))}. Run `python -m benchmarks.capacity --check --write`.")
    return kept


def scoring_costs(kept: Mapping[str, Any]) -> Costs:
    """Costs of ``scored_groups`` alone; half of what scores an hour comes before its requests."""
    part, database = kept["scoring"], kept["scoring"]["database"]
    own = {name: part[name] - seconds for name, seconds in database.items()}
    half_hour, half_row = (own["hour_s"] - own["report_s"]) / 2, own["row_s"] / 2
    costs = Costs(
        own["run_s"], half_hour, half_hour, half_row, half_row, own["report_s"],
        database_run_s=database["run_s"], database_hour_s=database["hour_s"], database_row_s=database["row_s"],
    )  # fmt: skip
    costs = replace(
        costs, crowded=max(1.0, median(kept["crowded"]["seconds"]) / said_s(kept, costs, kept["crowded"]["processes"], 16, 0.0))
    )
    # One request after another: what the run takes longer than the model says is divided among them.
    latency_s, seconds = kept["one_place"]["latency_s"], median(kept["one_place"]["seconds"])
    beyond_s = seconds - said_s(kept, costs, 1, 1, latency_s, HOURS_PER_RUN)
    return replace(costs, stored_s=max(0.0, beyond_s / HOURS_PER_RUN / ORDERS))


def said_s(kept: Mapping[str, Any], costs: Costs, processes: int, concurrency: int, latency_s: float, hours: int | None = None) -> float:
    """The model's seconds for kept hours on this machine."""
    hour = Hour(0, ORDERS)  # a small one: the cost of an hour is measured on those
    return backfill_s(Site(processes, kept["cores"], concurrency), costs, Limits(lambda: latency_s), [hour] * (hours or kept["hours"]))


def all_costs(kept: Mapping[str, Any]) -> Costs:
    """Costs of all four assets of an hour, one run each of reading and scoring, and of the agents' writing."""
    part, database, scored = kept["reading"], kept["reading"]["database"], scoring_costs(kept)
    own = {name: part[name] - seconds for name, seconds in database.items()}
    return replace(
        scored, run_s=own["run_s"] + scored.run_s, plan_hour_s=own["hour_s"] + scored.plan_hour_s,
        plan_row_s=own["row_s"] + scored.plan_row_s, database_run_s=database["run_s"] + scored.database_run_s,
        database_hour_s=database["hour_s"] + scored.database_hour_s, database_row_s=database["row_s"] + scored.database_row_s,
        write_row_s=kept["write_row_s"],
    )  # fmt: skip


def projected_site(kept: Mapping[str, Any], concurrency: int = 16) -> Site:
    """The defaults beside a database of its own."""
    return Site(4, kept["cores"], concurrency, database_cores=DATABASE_CORES)


def _compared(seconds: float, said: float) -> dict[str, float]:
    return {"seconds": seconds, "said": said, "off": said / seconds - 1}


def compared(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Kept runs, each beside the model's seconds."""
    rows, costs = [], scoring_costs(kept)
    for run in kept["runs"]:
        said = said_s(kept, costs, run["processes"], run["concurrency"], kept["latency_s"])
        ideal = kept["hours"] * ORDERS * kept["latency_s"] / run["concurrency"] / run["processes"]
        rows.append({**run, **_compared(median(run["seconds"]), said), "ideal": ideal})
    return rows


def compared_with_celery(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Backfills of the scale test, each beside the model's seconds."""
    rows, speed = [], json.loads(SPEED.read_text())
    for workers, seconds in speed["seconds_by_workers"].items():
        site, hours = Site(int(workers), speed["cores"], CELERY_CONCURRENCY), [Hour(0, ORDERS)] * speed["hours"]
        said = scoring_span_s(site, scoring_costs(kept), Limits(lambda: speed["latency_s"]), hours, HOURS_PER_RUN)
        ideal = speed["hours"] * ORDERS * speed["latency_s"] / CELERY_CONCURRENCY / int(workers)
        rows.append({"workers": workers, **_compared(seconds, said), "ideal": ideal})
    return rows


def prices(page: str) -> dict[str, dict[str, float]]:
    """Requests, tokens and dollars of 1,000 trajectories by judge, from the table of costs.md."""
    found = re.findall(r"^\| (\w+/\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.M)
    names = ("requests", "tokens_in", "tokens_out", "usd", "usd_most")
    return {judge: dict(zip(names, (float(cell.replace(",", "")) for cell in cells), strict=True)) for judge, *cells in found}


def provider(judge: Mapping[str, float], latency_s: float, requests: float | None = None, tokens: float | None = None) -> Limits:
    """Limits of a judge's provider, a minute; ``judge`` is a line of costs.md."""
    return Limits(lambda: latency_s, requests, tokens, (judge["tokens_in"] + judge["tokens_out"]) / judge["requests"])


def highest_rate(judge: Mapping[str, float], limits: Limits) -> float:
    """Most trajectories an hour whose requests the provider's limits allow; infinite without a limit."""
    requests_min = (limits.requests_per_minute or math.inf, (limits.tokens_per_minute or math.inf) / limits.tokens_per_request)
    return min(requests_min) * 60 / judge["requests"] * 1000


def played(kept: Mapping[str, Any], rate: int, site: Site, limits: Limits, judge: Mapping[str, float]) -> Steady:
    """Four hours at so many trajectories an hour."""
    return steady(
        site, all_costs(kept), limits, Hour(rate, round(rate * judge["requests"] / 1000)),
        hours=4, batch_rows=BATCH_ROWS, train_row_s=TRAIN_ROW_S, version_s=VERSION_S,
    )  # fmt: skip


def minutes(state: Steady) -> float:
    """Minutes from an hour's end to its scores; infinite where every hour waits longer than the one before."""
    return math.inf if state.growing else state.scored_after_s / 60


def limited(kept: Mapping[str, Any], rate: int, site: Site, limits: Limits, judge: Mapping[str, float]) -> float:
    """Minutes to an hour's scores under a provider's limits; infinite above the highest rate that these allow."""
    return math.inf if rate > highest_rate(judge, limits) else minutes(played(kept, rate, site, limits, judge))


def projected(
    kept: Mapping[str, Any], latency_s: float, requests: float, tokens: float, rates: Sequence[int] = RATES
) -> list[dict[str, Any]]:
    """Loads, delays and costs by rate: with the defaults, with enough JUDGE_CONCURRENCY, and both under the provider's limits."""
    table = prices(PRICES.read_text())
    judge, rows = table[SHOWN[0]], []
    unlimited, limits = provider(judge, latency_s), provider(judge, latency_s, requests, tokens)
    site = projected_site(kept)
    for rate in rates:
        default = then = played(kept, rate, site, unlimited, judge)
        enough = site
        while minutes(then) > 60 and enough.concurrency < 1024:
            enough = replace(enough, concurrency=2 * enough.concurrency)
            then = played(kept, rate, enough, unlimited, judge)
        requests_min = rate * judge["requests"] / 60_000
        trainers, gb_day, days = rate * (TRAIN_ROW_S + VERSION_S / BATCH_ROWS) / 3600, rate * 24 * ROW_BYTES / 1e9, DAYS_KEPT[rate]
        rows.append({
            "rate": rate, "agents": rate / ROWS_OF_AN_AGENT,
            "requests_min": requests_min, "tokens_min": requests_min * limits.tokens_per_request,
            "of_limit": rate / highest_rate(judge, limits),
            **{name: rate / 1000 * table[name]["usd"] for name in SHOWN},
            "default_min": minutes(default), "default_limited": limited(kept, rate, site, limits, judge),
            "needed": enough.concurrency, "needed_min": minutes(then),
            "cores": then.used["cores"] * kept["cores"], "database": then.used["database"] * DATABASE_CORES,
            "trainers": trainers, "trained": default.trained_share, "rented": [kept["cores"], DATABASE_CORES, math.ceil(trainers)],
            "gb_day": gb_day, "days": days, "gb": gb_day * days, "archive_gb": gb_day * (YEAR_DAYS - days),
        })  # fmt: skip
    return rows


def by_tier(kept: Mapping[str, Any], latency_s: float, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Delays under each tier's limits at the rates of ``rows``, with the JUDGE_CONCURRENCY that these need without limits."""
    judge = prices(PRICES.read_text())[SHOWN[0]]
    found = []
    for tier, (requests, tokens) in TIERS.items():
        limits = provider(judge, latency_s, requests, tokens)
        states = [limited(kept, row["rate"], projected_site(kept, row["needed"]), limits, judge) for row in rows]
        found.append({"tier": tier, "requests": requests, "tokens": tokens, "most": highest_rate(judge, limits), "states": states})
    return found


# --- the page


def _check_cells(row: Mapping[str, Any], decimals: int) -> list[str]:
    seconds, said, ideal = (f"{row[name]:.{decimals}f}" for name in ("seconds", "said", "ideal"))
    return [seconds, said, f"{row['off']:+.1%}", ideal]


def check_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of kept runs beside the model's seconds."""
    return markdown_table(
        ["JUDGE_CONCURRENCY", "processes", "measured s", "model s", "off", "judge alone s"],
        [[str(row["concurrency"]), str(row["processes"]), *_check_cells(row, 1)] for row in rows],
    )


def celery_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of the scale test's backfills beside the model's seconds."""
    return markdown_table(
        ["workers", "measured by Celery s", "model s", "off", "judge alone s"],
        [[row["workers"], *_check_cells(row, 0)] for row in rows],
    )


def _scored(found_min: float) -> str:
    return "never" if math.isinf(found_min) else f"{found_min:,.0f} min"


def monthly_usd(row: Mapping[str, Any], usd: Mapping[str, float]) -> dict[str, float]:
    """Dollars of a month at a projected rate, by purpose."""
    spent = {
        SHOWN[0]: row[SHOWN[0]] * MONTH_H,
        f"cores, {usd['core_hour']:g} an hour": sum(row["rented"]) * MONTH_H * usd["core_hour"],
        f"disk of the database, {usd['gb_month']:g} a GB": row["gb"] * usd["gb_month"],
        f"archive after a year, {usd['archive_gb_month']:g} a GB": row["archive_gb"] * usd["archive_gb_month"],
    }
    return {**spent, "all of these": sum(spent.values()), f"{SHOWN[1]} in place of {SHOWN[0]}": row[SHOWN[1]] * MONTH_H}


def rate_table(rows: Sequence[Mapping[str, Any]], requests: float, tokens: float, usd: Mapping[str, float] = USD) -> str:
    """Table of needs and costs, a column for each rate."""
    limits = f"{requests:,.0f} requests and {tokens:,.0f} tokens a minute"
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("agents", lambda row: f"{row['agents']:,.0f}"),
        ("requests a minute to the judge", lambda row: f"{row['requests_min']:,.0f}"),
        ("tokens a minute", lambda row: f"{row['tokens_min']:,.0f}"),
        (f"share of the limits: {limits}", lambda row: f"{row['of_limit']:.0%}"),
        ("scores after an hour's end, with the defaults", lambda row: _scored(row["default_min"])),
        ("the same under these limits", lambda row: _scored(row["default_limited"])),
        ("least JUDGE_CONCURRENCY for scores within 60 min", lambda row: "none" if row["needed_min"] > 60 else f"{row['needed']}"),
        ("scores after an hour's end then", lambda row: _scored(row["needed_min"])),
        ("busy cores: workers", lambda row: f"{row['cores']:.3f}"),
        ("busy cores: database", lambda row: f"{row['database']:.3f}"),
        ("busy cores: CPU trainers, for all trajectories", lambda row: f"{row['trainers']:,.1f}"),
        ("share that one core of CPU trainer trains on", lambda row: f"{row['trained']:.0%}"),
        ("cores to rent: workers, database, trainers", lambda row: " + ".join(map(str, row["rented"]))),
        ("GB a day, at 26 KB a trajectory", lambda row: f"{row['gb_day']:,.0f}"),
        ("GB in the database (days until archived)", lambda row: f"{row['gb']:,.0f} ({row['days']})"),
        ("GB in the archive after a year", lambda row: f"{row['archive_gb']:,.0f}"),
        *((f"dollars a month: {name}", lambda row, name=name: f"{monthly_usd(row, usd)[name]:,.0f}") for name in monthly_usd(rows[0], usd)),
    ]
    columns = ["", *(f"{row['rate']:,} an hour" for row in rows)]
    return markdown_table(columns, [[name, *(cell(row) for row in rows)] for name, cell in lines])


def tier_table(tiers: Sequence[Mapping[str, Any]], rates: Sequence[int] = RATES) -> str:
    """Table of delays under the provider's limits, a line for each tier."""
    return markdown_table(
        ["tier", "requests a minute", "tokens a minute", "trajectories an hour at most", *(f"{rate:,} an hour" for rate in rates)],
        [
            [str(row["tier"]), f"{row['requests']:,}", f"{row['tokens']:,}", f"{row['most']:,.0f}", *map(_scored, row["states"])]
            for row in tiers
        ],
    )


def cost_table(kept: Mapping[str, Any]) -> str:
    """Table of the measured costs, milliseconds."""
    lines = [
        ("reading: `window_groups`, `market_outcomes`, `hindsight`", kept["reading"]), ("of it the database", kept["reading"]["database"]),
        ("`scored_groups`", kept["scoring"]), ("of it the database", kept["scoring"]["database"]),
    ]  # fmt: skip
    cells = [
        [name, f"{1000 * part['run_s']:,.0f}", f"{1000 * part['hour_s']:,.0f}", f"{1000 * part['row_s']:,.2f}"] for name, part in lines
    ]
    return markdown_table(
        ["milliseconds", "of a run", "of an hour of 24 trajectories", "of a trajectory more"],
        [*cells, ["the database, when an agent writes a trajectory", "", "", f"{1000 * kept['write_row_s']:,.2f}"]],
    )


def picture(kept: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], celery: Sequence[Mapping[str, Any]], latency_s: float) -> bytes:
    """Plot of minutes until an hour is scored, by rate, with the tiers' highest rates; and of the checks."""
    figure = new_figure(9.6, 3.6, 88, constrained=True)
    left, right = figure.subplots(1, 2)
    judge = prices(PRICES.read_text())[SHOWN[0]]
    rates = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    for concurrency, colour in zip((16, 64, 256), SERIES, strict=False):
        found = [played(kept, rate, projected_site(kept, concurrency), provider(judge, latency_s), judge) for rate in rates]
        left.plot(rates, [state.scored_after_s / 60 for state in found], "o-", color=colour, markersize=4, label=f"{concurrency} at once")
    left.axhline(60, color=GREY, linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="trajectories an hour", ylabel="minutes from an hour's end to its scores")
    for tier, (requests, tokens) in TIERS.items():
        most = highest_rate(judge, provider(judge, latency_s, requests, tokens))
        if most < 2 * rates[-1]:
            left.axvline(most, color=GREY, linestyle=":", linewidth=1)
            left.annotate(f"tier {tier}", (most, 1), xycoords=("data", "axes fraction"), xytext=(-2, -3), textcoords="offset points",
                          rotation=90, ha="right", va="top", fontsize=7)  # fmt: skip
    left.legend(title="JUDGE_CONCURRENCY", fontsize=8, title_fontsize=8, loc="lower right")
    every = [*rows, *celery]
    ends = [0.8 * min(row["seconds"] for row in every), 1.25 * max(row["seconds"] for row in every)]
    right.fill_between(ends, [end * (1 - BOUND) for end in ends], [end * (1 + BOUND) for end in ends], color=GREY, alpha=0.4)
    groups = [(f"processes: {number}", [row for row in rows if row["processes"] == number]) for number in (1, 2)]
    for (label, chosen), colour in zip([*groups, ("Celery", celery)], SERIES, strict=False):
        right.plot([row["seconds"] for row in chosen], [row["said"] for row in chosen], "o", color=colour, markersize=4, label=label)
    right.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, s", ylabel="model, s")
    right.legend(fontsize=8)
    plain_axes((left, right))
    return png_of(figure)


def main() -> int:
    """Measure or read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure this machine and compare real runs, some minutes")
    parser.add_argument("--write", action="store_true", help=f"put tables and plot into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--latency", type=float, default=5.0, help="seconds that a judge takes for an answer, of the projections")
    for name, default in zip(("requests", "tokens"), TIERS[TIER], strict=True):
        text = f"{name} that the judge's provider allows in a minute, of the projections; by default {default:,}, those of tier {TIER}"
        parser.add_argument(f"--{name}-per-minute", type=float, default=default, help=text)
    for name, default in USD.items():
        words = name.replace("_", "-")
        parser.add_argument(f"--usd-{words}", type=float, default=default, help=f"dollars for one {words}; by default {default:g}")
    given = parser.parse_args()
    limits = given.requests_per_minute, given.tokens_per_minute
    if min(limits) <= 0:
        parser.error("A provider's limit must be above 0.")
    if given.check:
        KEPT.write_text(json.dumps(measure(), indent=1) + "\n")
    kept = kept_measurement()
    rows, celery = compared(kept), compared_with_celery(kept)
    by_rate = projected(kept, given.latency, *limits)
    tables = {
        "rates": rate_table(by_rate, *limits, {name: vars(given)[f"usd_{name}"] for name in USD}),
        "tiers": tier_table(by_tier(kept, given.latency, by_rate)),
    }
    print("\n\n".join((check_table(rows), celery_table(celery), cost_table(kept), *tables.values())))
    if given.write:
        text = PAGE.read_text()
        for name, table in tables.items():
            text = re.sub(
                rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda found, table=table: found[1] + table + found[2], text, flags=re.S
            )
        PAGE.write_text(text)
        PICTURE.write_bytes(picture(kept, rows, celery, given.latency))
    return int(any(abs(row["off"]) > BOUND for row in [*rows, *celery]))


if __name__ == "__main__":
    sys.exit(main())
