"""Capacity model and its check: `python -m benchmarks.capacity [--check] [--write]` prints the tables of docs/explanation/capacity.md.

--check measures the costs of hours and trajectories on this machine (with an embedded server and a scripted judge), makes real runs of
`scored_groups` with a judge that takes 300 ms, and keeps them in benchmarks/capacity.json. Without it the kept measurement is read. The
model's seconds are compared with these runs and with the scale test's by Celery workers; the exit code is 1 when one is off by more than
15 %. --write puts tables and plot into the docs.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from babylon_rl.automation.launch import run_hours
from babylon_rl.judge.scoring import score_windows
from babylon_rl.judge.scripted.judge import ScriptedJudge
from babylon_rl.judge.scripted.server import running
from babylon_rl.reporting.numbers import markdown_table
from babylon_rl.reporting.plots import GREY, SERIES, new_figure, plain_axes, png_of
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.windows import window_of, window_range
from babylon_rl_tests.many_rows import ManyRows, insert_many
from benchmarks.capacity_model import Costs, Hour, Limits, Site, Steady, backfill_s, scoring_span_s, steady

ROOT = Path(__file__).parents[1]
KEPT, PAGE, PICTURE = Path(__file__).with_suffix(".json"), ROOT / "docs/explanation/capacity.md", ROOT / "docs/images/capacity.png"
PRICES = ROOT / "docs/explanation/costs.md"
BOUND, ROUNDS, LATENCY_S = 0.15, 3, 0.3
HOURS, HOURS_PER_RUN, ORDERS = 48, 24, 2
AGENTS, ROWS = 12, 24  # of a small hour
BIG_AGENTS, BIG_ROWS = 250, 2000
POINTS = [(concurrency, processes) for concurrency in (4, 8, 16) for processes in (1, 2)]
START, NOW = datetime(2025, 9, 1), datetime(2025, 11, 1)
READING, SCORING = ("window_groups", "market_outcomes", "hindsight"), ("scored_groups",)
# Seconds from the first scores to the last, by number of workers: table "720 hours" of docs/howto/several-machines.md, measured by
# `python -m benchmarks.scale_test --hours 720 speed`. LATENCY_S, ORDERS and HOURS_PER_RUN are the same there; an hour has 5 trajectories.
CELERY_HOURS, CELERY_CONCURRENCY, CELERY_S = 720, 1, {1: 483.0, 2: 240.0, 4: 127.0}
# Seconds of one core, measured elsewhere: a trajectory in the CPU trainer with KL_PENALTY (costs.md, 119 for 1,000); benchmark and
# confirmation of a version, at most (performance.md, of the demo: 116 s by the clock on two cores). A batch of TRAINING_MAX_TRAJECTORIES.
TRAIN_ROW_S, VERSION_S, BATCH_ROWS = 0.119, 2 * 116.0, 10_000
RATES = (10_000, 100_000, 1_000_000)
# Requests and tokens a minute of gpt-4o-mini by OpenAI's usage tier (platform.openai.com/docs/models/gpt-4o-mini); TIER is the default.
TIERS = {1: (500, 200_000), 2: (5_000, 2_000_000), 3: (5_000, 4_000_000), 4: (10_000, 10_000_000), 5: (30_000, 150_000_000)}
TIER = 2
ROWS_OF_AN_AGENT = 8  # an hour, and how large one is: the recorded game; the rows of benchmarks/read_window.py
ROW_BYTES = 26_000
SHOWN = ("openai/gpt-4o-mini", "openai/gpt-4.1")
_work: dict[str, Any] = {}


# --- real runs


def _start(home: str, judge: str | None, concurrency: int) -> None:
    """Make the settings of a worker process; importing this file did its imports."""
    chosen = {"judge_model": "openai/scripted", "judge_base_url": judge} if judge else {}
    _work["settings"] = Settings(_env_file=None, babylon_rl_home=Path(home), judge_concurrency=concurrency, **chosen)


def _ready(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def _run(url: str, windows: Sequence[str], selection: Sequence[str]) -> None:
    run_hours(Database(url, url), _work["settings"], windows, selection, now=lambda: NOW)


@contextmanager
def workers(home: Path, judge: str | None, concurrency: int, processes: int) -> Iterator[Pool]:
    """Processes that have imported everything."""
    with multiprocessing.get_context("spawn").Pool(processes, _start, (str(home), judge, concurrency)) as pool:
        while len(set(pool.map(_ready, range(2 * processes), 1))) < processes:
            pass
        yield pool
        pool.close()
        pool.join()


def _score(url: str, windows: Sequence[str]) -> float:
    """Seconds of the scores alone, without the run around them."""
    with Database(url, url).connect() as connection:
        began = time.perf_counter()
        score_windows(connection, windows, _work["settings"], NOW)
        return time.perf_counter() - began


class Bench:
    """An embedded server with hours that were read, copied for every measured run."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home, self._copies = url, home, 0

    def address(self, name: str) -> str:
        """The address of a database of the server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def fill(self, name: str, many: ManyRows) -> list[str]:
        """A migrated database with rows; its hours."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        database = Database(self.address(name), self.address(name))
        migrate(database)
        database.prepare_dagster_schema()
        with database.connect(autocommit=True) as connection:
            insert_many(connection, many)
            connection.execute("VACUUM (ANALYZE)")
        return list(window_range(window_of(many.start), window_of(many.end)))

    def copy(self, name: str) -> str:
        """The address of a copy of a database, which goes with the server."""
        self._copies += 1
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE copy_{self._copies} TEMPLATE {name}")
        return self.address(f"copy_{self._copies}")

    def warm(self, pool: Pool, windows: Sequence[str], processes: int) -> None:
        """Let each process import what its first run needs, some seconds that a worker that lives on pays once."""
        copies = [self.copy("small") for _ in range(processes)]
        pool.starmap(_run, [(url, windows, SCORING) for url in copies], 1)

    def seconds(self, pool: Pool, name: str, windows: Sequence[str], selection: Sequence[str], *, keep: bool = False) -> float:
        """Seconds of runs of 24 hours each on the pool's processes, on a copy unless its results are to be kept."""
        runs = [windows[start : start + HOURS_PER_RUN] for start in range(0, len(windows), HOURS_PER_RUN)]
        url = self.address(name) if keep else self.copy(name)
        began = time.perf_counter()
        pool.starmap(_run, [(url, run, selection) for run in runs], 1)
        return time.perf_counter() - began


def _parts(hours: Sequence[str], big: str) -> list[tuple[str, Sequence[str]]]:
    """The runs that costs are fitted on."""
    return [("small", hours[:1]), ("small", hours[:HOURS_PER_RUN]), ("large", [big])]


def fitted(one: float, many: float, big: float, one_alone: float = 0.0, many_alone: float = 0.0) -> dict[str, float]:
    """Seconds of a run, a small hour and a trajectory more, from runs of ``_parts``.

    ``report_s`` is the part of an hour outside its scores, from runs of these alone.
    """
    hour = (many - one) / (HOURS_PER_RUN - 1)
    run = max(0.0, one - hour)
    return {
        "run_s": run,
        "hour_s": hour,
        "row_s": max(0.0, (big - run - hour) / (BIG_ROWS - ROWS)),
        "report_s": max(0.0, hour - (many_alone - one_alone) / (HOURS_PER_RUN - 1)),
    }


def measure() -> dict[str, Any]:
    """Costs and real runs of this machine, in rounds; medians over the rounds."""
    small = ManyRows(HOURS * ROWS, START, START + timedelta(hours=HOURS), AGENTS, 0, steps=5, prompt_characters=600)
    large = ManyRows(BIG_ROWS, START, START + timedelta(hours=1), BIG_AGENTS, 0, steps=5, prompt_characters=600)
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="babylon-rl-capacity-") as directory, use_server(Path(directory)) as url:
        bench = Bench(url, Path(directory))
        hours, (big, *_) = bench.fill("small", small), bench.fill("large", large)
        with workers(bench.home, None, 16, 1) as pool:
            bench.seconds(pool, "small", hours[:1], READING)  # which imports the rest
            reading = [bench.seconds(pool, name, windows, READING) for name, windows in _parts(hours, big)]
            for name, windows in (("small", hours), ("large", [big])):
                bench.seconds(pool, name, windows, READING, keep=True)
        scoring: list[list[float]] = []
        runs: dict[tuple[int, int], list[float]] = {point: [] for point in POINTS}
        for _ in range(ROUNDS):
            with running(ScriptedJudge()) as judge, workers(bench.home, judge, 16, 1) as pool:
                bench.warm(pool, hours[:1], 1)
                whole = [bench.seconds(pool, name, windows, SCORING) for name, windows in _parts(hours, big)]
                alone = [pool.apply(_score, (bench.copy("small"), hours[:count])) for count in (1, HOURS_PER_RUN)]
                scoring.append([*whole, *alone])
            for concurrency, processes in POINTS:
                with running(ScriptedJudge(latency_s=LATENCY_S)) as judge, workers(bench.home, judge, concurrency, processes) as pool:
                    bench.warm(pool, hours[:1], processes)
                    runs[concurrency, processes].append(bench.seconds(pool, "small", hours, SCORING))
                    print(
                        json.dumps({"concurrency": concurrency, "processes": processes, "s": runs[concurrency, processes][-1]}),
                        file=sys.stderr,
                    )
        events = _events(bench.address("small"), len(hours))
    return {
        "measured_on": f"{began:%Y-%m-%d}", "load_average": [round(value, 1) for value in os.getloadavg()], "cores": os.cpu_count(),
        "hours": HOURS, "rows_of_an_hour": ROWS, "latency_s": LATENCY_S,
        "reading": fitted(*reading),
        "scoring": fitted(*(median(column) for column in zip(*scoring, strict=True))),
        "runs": [{"concurrency": c, "processes": p, "seconds": values} for (c, p), values in runs.items()],
        "events_of_an_hour": events,
    }  # fmt: skip


def _events(url: str, hours: int) -> dict[str, float]:
    """Rows and bytes that reading an hour adds to Dagster's event log."""
    with closing(psycopg.connect(url)) as connection:
        row = connection.execute(
            "SELECT count(*), pg_total_relation_size('babylon_dagster.event_logs') + "
            "pg_total_relation_size('babylon_dagster.asset_check_executions') FROM babylon_dagster.event_logs"
        ).fetchone()
    assert row is not None
    return {"rows": row[0] / hours, "bytes": row[1] / hours}


# --- the model's statements


def scoring_costs(kept: Mapping[str, Any]) -> Costs:
    """Costs of ``scored_groups`` alone; half of what scores an hour comes before its requests."""
    part = kept["scoring"]
    half_hour, half_row = (part["hour_s"] - part["report_s"]) / 2, part["row_s"] / 2
    return Costs(part["run_s"], half_hour, half_hour, half_row, half_row, report_hour_s=part["report_s"])


def all_costs(kept: Mapping[str, Any]) -> Costs:
    """Costs of all four assets of an hour, one run each of reading and scoring."""
    read, scored = kept["reading"], scoring_costs(kept)
    return Costs(
        read["run_s"] + scored.run_s, read["hour_s"] + scored.plan_hour_s, scored.finish_hour_s,
        read["row_s"] + scored.plan_row_s, scored.finish_row_s, report_hour_s=scored.report_hour_s,
    )  # fmt: skip


def _compared(seconds: float, said: float) -> dict[str, float]:
    return {"seconds": seconds, "said": said, "off": said / seconds - 1}


def compared(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Kept runs, each beside the model's seconds."""
    rows = []
    for run in kept["runs"]:
        site = Site(run["processes"], kept["cores"], run["concurrency"])
        hour = Hour(0, ORDERS)  # a small one: the cost of an hour is measured on those
        said = backfill_s(site, scoring_costs(kept), Limits(lambda: kept["latency_s"]), [hour] * kept["hours"])
        ideal = kept["hours"] * ORDERS * kept["latency_s"] / run["concurrency"] / run["processes"]
        rows.append({**run, **_compared(median(run["seconds"]), said), "ideal": ideal})
    return rows


def compared_with_celery(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Backfills of the scale test, each beside the model's seconds."""
    rows = []
    for workers, seconds in CELERY_S.items():
        site, hours = Site(workers, kept["cores"], CELERY_CONCURRENCY), [Hour(0, ORDERS)] * CELERY_HOURS
        said = scoring_span_s(site, scoring_costs(kept), Limits(lambda: LATENCY_S), hours, HOURS_PER_RUN)
        ideal = CELERY_HOURS * ORDERS * LATENCY_S / CELERY_CONCURRENCY / workers
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


def limited(
    kept: Mapping[str, Any], rate: int, site: Site, limits: Limits, judge: Mapping[str, float], without_min: float
) -> dict[str, float]:
    """Minutes to an hour's scores under a provider's limits: in all, later than ``without_min``, of requests that an hour leaves over."""
    most = highest_rate(judge, limits)
    if rate > most:
        return {"min": math.inf, "later": math.inf, "left": 60 * (rate / most - 1)}
    found = minutes(played(kept, rate, site, limits, judge))
    return {"min": found, "later": found - without_min, "left": 0.0}


def projected(
    kept: Mapping[str, Any], latency_s: float, requests: float, tokens: float, rates: Sequence[int] = RATES
) -> list[dict[str, Any]]:
    """Loads, delays and costs by rate: with the defaults, with enough JUDGE_CONCURRENCY, and both under the provider's limits."""
    table = prices(PRICES.read_text())
    judge, rows = table[SHOWN[0]], []
    unlimited, limits = provider(judge, latency_s), provider(judge, latency_s, requests, tokens)
    site = Site(4, kept["cores"])
    for rate in rates:
        default = then = played(kept, rate, site, unlimited, judge)
        enough = site
        while minutes(then) > 60 and enough.concurrency < 1024:
            enough = replace(enough, concurrency=2 * enough.concurrency)
            then = played(kept, rate, enough, unlimited, judge)
        requests_min = rate * judge["requests"] / 60_000
        rows.append({
            "rate": rate, "agents": rate / ROWS_OF_AN_AGENT, "rows_s": rate / 3600,
            "requests_min": requests_min, "tokens_min": requests_min * limits.tokens_per_request,
            "of_limit": rate / highest_rate(judge, limits),
            **{name: rate / 1000 * table[name]["usd"] for name in SHOWN},
            "default_min": minutes(default), "default_limited": limited(kept, rate, site, limits, judge, minutes(default)),
            "needed": enough.concurrency, "needed_min": minutes(then),
            "needed_limited": limited(kept, rate, enough, limits, judge, minutes(then)),
            "gb_day": rate * 24 * ROW_BYTES / 1e9,
            "cores": then.used["cores"] * kept["cores"], "trained": default.trained_share,
            "trainers": rate * (TRAIN_ROW_S + VERSION_S / BATCH_ROWS) / 3600,
        })  # fmt: skip
    return rows


def by_tier(kept: Mapping[str, Any], latency_s: float, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Delays under each tier's limits at the rates of ``rows``, with the JUDGE_CONCURRENCY that these need without limits."""
    judge = prices(PRICES.read_text())[SHOWN[0]]
    found = []
    for tier, (requests, tokens) in TIERS.items():
        limits = provider(judge, latency_s, requests, tokens)
        states = [limited(kept, row["rate"], Site(4, kept["cores"], row["needed"]), limits, judge, row["needed_min"]) for row in rows]
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
        [[str(row["workers"]), *_check_cells(row, 0)] for row in rows],
    )


def _scored(found_min: float) -> str:
    return "never: the backlog grows" if math.isinf(found_min) else f"{found_min:,.0f} min after its end"


def _limited(state: Mapping[str, float]) -> str:
    """Cell of an hour under limits."""
    if state["left"]:
        return f"never: an hour leaves {state['left']:,.0f} min of requests over"
    return _scored(state["min"]) + (f", {state['later']:,.0f} later" if 0.5 <= state["later"] < math.inf else "")


def rate_table(rows: Sequence[Mapping[str, Any]], requests: float, tokens: float) -> str:
    """Table of needs and costs, a column for each rate."""
    limits = f"{requests:,.0f} requests and {tokens:,.0f} tokens a minute"
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("agents", lambda row: f"{row['agents']:,.0f}"),
        ("trajectories a second", lambda row: f"{row['rows_s']:,.1f}"),
        ("requests a minute to the judge", lambda row: f"{row['requests_min']:,.0f}"),
        ("tokens a minute", lambda row: f"{row['tokens_min']:,.0f}"),
        (f"share of the provider's limits, {limits}", lambda row: f"{row['of_limit']:.0%}"),
        *((f"dollars an hour, {name}", lambda row, name=name: f"{row[name]:,.2f}") for name in SHOWN),
        ("an hour is scored, with the defaults", lambda row: _scored(row["default_min"])),
        ("the same under these limits", lambda row: _limited(row["default_limited"])),
        ("least JUDGE_CONCURRENCY that scores it within the next", lambda row: "none" if row["needed_min"] > 60 else f"{row['needed']}"),
        ("an hour is scored then", lambda row: _scored(row["needed_min"])),
        ("the same under these limits", lambda row: _limited(row["needed_limited"])),
        ("gigabytes a day, at 26 KB a trajectory", lambda row: f"{row['gb_day']:,.0f}"),
        ("cores busy with hours and scores", lambda row: f"{row['cores']:.3f}"),
        ("core-hours a day, hours and scores", lambda row: f"{24 * row['cores']:,.1f}"),
        ("share that a CPU trainer on one core trains on", lambda row: f"{row['trained']:.0%}"),
        ("cores of CPU trainers for all of it", lambda row: f"{row['trainers']:,.1f}"),
        ("core-hours a day, training on all of it", lambda row: f"{24 * row['trainers']:,.0f}"),
    ]
    columns = ["", *(f"{row['rate']:,} an hour" for row in rows)]
    return markdown_table(columns, [[name, *(cell(row) for row in rows)] for name, cell in lines])


def tier_table(tiers: Sequence[Mapping[str, Any]], rates: Sequence[int] = RATES) -> str:
    """Table of delays under the provider's limits, a line for each tier."""
    return markdown_table(
        ["tier", "requests a minute", "tokens a minute", "trajectories an hour at most", *(f"{rate:,} an hour" for rate in rates)],
        [
            [str(row["tier"]), f"{row['requests']:,}", f"{row['tokens']:,}", f"{row['most']:,.0f}", *map(_limited, row["states"])]
            for row in tiers
        ],
    )


def cost_table(kept: Mapping[str, Any]) -> str:
    """Table of the measured costs, milliseconds."""
    names = {"reading": "reading: `window_groups`, `market_outcomes`, `hindsight`", "scoring": "`scored_groups`"}
    return markdown_table(
        ["milliseconds", "of a run", "of an hour of 24 trajectories", "of a trajectory more"],
        [
            [name, f"{1000 * kept[key]['run_s']:,.0f}", f"{1000 * kept[key]['hour_s']:,.0f}", f"{1000 * kept[key]['row_s']:,.2f}"]
            for key, name in names.items()
        ],
    )


def picture(kept: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], celery: Sequence[Mapping[str, Any]], latency_s: float) -> bytes:
    """Plot of minutes until an hour is scored, by rate, with the tiers' highest rates; and of the checks."""
    figure = new_figure(9.6, 3.6, 88, constrained=True)
    left, right = figure.subplots(1, 2)
    judge = prices(PRICES.read_text())[SHOWN[0]]
    rates = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    for concurrency, colour in zip((16, 64, 256), SERIES, strict=False):
        found = [played(kept, rate, Site(4, kept["cores"], concurrency), provider(judge, latency_s), judge) for rate in rates]
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
    for (label, chosen), colour in zip([*groups, ("Celery, 720 hours", celery)], SERIES, strict=False):
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
    given = parser.parse_args()
    limits = given.requests_per_minute, given.tokens_per_minute
    if min(limits) <= 0:
        parser.error("A provider's limit must be above 0.")
    if given.check:
        KEPT.write_text(json.dumps(measure(), indent=1) + "\n")
    kept = json.loads(KEPT.read_text())
    rows, celery = compared(kept), compared_with_celery(kept)
    by_rate = projected(kept, given.latency, *limits)
    tables = {
        "check": check_table(rows), "celery": celery_table(celery), "costs": cost_table(kept),
        "rates": rate_table(by_rate, *limits), "tiers": tier_table(by_tier(kept, given.latency, by_rate)),
    }  # fmt: skip
    print("\n\n".join(tables.values()))
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
