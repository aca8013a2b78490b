"""Capacity model and its check: `python -m benchmarks.capacity [--check] [--write]` prints the tables of docs/explanation/capacity.md.

--check measures what hours and trajectories cost on this machine (an embedded server and a scripted judge of their own), makes real runs of
`scored_groups` with a judge that takes 300 ms, and keeps them in benchmarks/capacity.json beside what the model says of each; the exit code
is 1 when one is off by more than 15 %. Without it the kept measurement is read. --write puts tables and plot into the docs.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from benchmarks.capacity_model import Costs, Hour, Limits, Site, Steady, backfill_s, steady

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
# Measured elsewhere: the CPU trainer with KL_PENALTY (costs.md); training, comparison and confirmation of the demo (performance.md).
TRAIN_ROW_S, VERSION_S, BATCH_ROWS = 0.119, 704.0, 10_000
RATES = (10_000, 100_000, 1_000_000)
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
    """Seconds of a run, a small hour and a trajectory more, from runs of ``_parts``; of an hour what is not scores, from these alone."""
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


# --- what the model says


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


def compared(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each real run beside what the model says of it."""
    rows = []
    for run in kept["runs"]:
        site = Site(run["processes"], kept["cores"], run["concurrency"])
        hour = Hour(0, ORDERS)  # a small one, which is what the cost of an hour is measured on
        said = backfill_s(site, scoring_costs(kept), Limits(lambda: kept["latency_s"]), [hour] * kept["hours"])
        ideal = kept["hours"] * ORDERS * kept["latency_s"] / run["concurrency"] / run["processes"]
        seconds = median(run["seconds"])
        rows.append({**run, "seconds": seconds, "said": said, "off": said / seconds - 1, "ideal": ideal})
    return rows


def prices(page: str) -> dict[str, dict[str, float]]:
    """Requests, tokens and dollars of 1,000 trajectories by judge, from the table of costs.md."""
    found = re.findall(r"^\| (\w+/\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.M)
    names = ("requests", "tokens_in", "tokens_out", "usd", "usd_most")
    return {judge: dict(zip(names, (float(cell.replace(",", "")) for cell in cells), strict=True)) for judge, *cells in found}


def played(kept: Mapping[str, Any], rate: int, site: Site, latency_s: float, per_thousand: Mapping[str, float]) -> Steady:
    """Three hours at so many trajectories an hour."""
    hour = Hour(rate, round(rate * per_thousand["requests"] / 1000))
    return steady(
        site, all_costs(kept), Limits(lambda: latency_s), hour,
        hours=3, batch_rows=BATCH_ROWS, train_row_s=TRAIN_ROW_S, version_s=VERSION_S,
    )  # fmt: skip


def projected(kept: Mapping[str, Any], latency_s: float) -> list[dict[str, Any]]:
    """A row for each rate: what comes, how the defaults do, the least JUDGE_CONCURRENCY that keeps up, what a day leaves."""
    table = prices(PRICES.read_text())
    judge, rows = table[SHOWN[0]], []
    for rate in RATES:
        default = played(kept, rate, Site(4, kept["cores"]), latency_s, judge)
        needed, then = 16, default
        while (then.growing or then.scored_after_s > 3600) and needed < 1024:
            needed *= 2
            then = played(kept, rate, Site(4, kept["cores"], needed), latency_s, judge)
        rows.append({
            "rate": rate, "agents": rate / ROWS_OF_AN_AGENT, "rows_s": rate / 3600,
            "requests_min": rate * judge["requests"] / 60_000, "tokens_min": rate * (judge["tokens_in"] + judge["tokens_out"]) / 60_000,
            **{name: rate / 1000 * table[name]["usd"] for name in SHOWN},
            "default_min": default.scored_after_s / 60, "default_growing": default.growing,
            "needed": needed, "needed_min": then.scored_after_s / 60, "needed_growing": then.growing or then.scored_after_s > 3600,
            "gb_day": rate * 24 * ROW_BYTES / 1e9,
            "cores": then.used["cores"] * kept["cores"], "trained": default.trained_share,
            "trainers": rate * (TRAIN_ROW_S + VERSION_S / BATCH_ROWS) / 3600,
        })  # fmt: skip
    return rows


# --- the page


def check_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Real runs beside the model's."""
    return markdown_table(
        ["JUDGE_CONCURRENCY", "processes", "measured s", "model s", "off", "judge alone s"],
        [
            [
                str(row["concurrency"]), str(row["processes"]), f"{row['seconds']:.1f}", f"{row['said']:.1f}", f"{row['off']:+.0%}",
                f"{row['ideal']:.1f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def rate_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of what each rate needs, a column for each."""

    def scored(minutes: float, growing: bool) -> str:
        return "never: the backlog grows" if growing else f"{minutes:,.0f} min after its end"

    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("agents", lambda row: f"{row['agents']:,.0f}"),
        ("trajectories a second", lambda row: f"{row['rows_s']:,.1f}"),
        ("requests a minute to the judge", lambda row: f"{row['requests_min']:,.0f}"),
        ("tokens a minute", lambda row: f"{row['tokens_min']:,.0f}"),
        *((f"dollars an hour, {name}", lambda row, name=name: f"{row[name]:,.2f}") for name in SHOWN),
        ("an hour is scored, with the defaults", lambda row: scored(row["default_min"], row["default_growing"])),
        ("least JUDGE_CONCURRENCY that scores it within the next", lambda row: "none" if row["needed_growing"] else f"{row['needed']}"),
        ("an hour is scored then", lambda row: scored(row["needed_min"], row["needed_growing"])),
        ("gigabytes a day, at 26 KB a trajectory", lambda row: f"{row['gb_day']:,.0f}"),
        ("cores busy then", lambda row: f"{row['cores']:.2f}"),
        ("share that one CPU trainer trains on", lambda row: f"{row['trained']:.0%}"),
        ("CPU trainers for all of it", lambda row: f"{row['trainers']:.1f}"),
    ]
    columns = ["", *(f"{row['rate']:,} an hour" for row in rows)]
    return markdown_table(columns, [[name, *(cell(row) for row in rows)] for name, cell in lines])


def cost_table(kept: Mapping[str, Any]) -> str:
    """The measured costs, milliseconds."""
    names = {"reading": "reading: `window_groups`, `market_outcomes`, `hindsight`", "scoring": "`scored_groups`"}
    return markdown_table(
        ["milliseconds", "of a run", "of an hour of 24 trajectories", "of a trajectory more"],
        [
            [name, f"{1000 * kept[key]['run_s']:,.0f}", f"{1000 * kept[key]['hour_s']:,.0f}", f"{1000 * kept[key]['row_s']:,.2f}"]
            for key, name in names.items()
        ],
    )


def picture(kept: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], latency_s: float) -> bytes:
    """Minutes until an hour is scored, by rate; and the check."""
    figure = new_figure(9.6, 3.6, 88, constrained=True)
    left, right = figure.subplots(1, 2)
    judge = prices(PRICES.read_text())[SHOWN[0]]
    rates = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    for concurrency, colour in zip((16, 64, 256), SERIES, strict=False):
        found = [played(kept, rate, Site(4, kept["cores"], concurrency), latency_s, judge) for rate in rates]
        left.plot(rates, [state.scored_after_s / 60 for state in found], "o-", color=colour, markersize=4, label=f"{concurrency} at once")
    left.axhline(60, color=GREY, linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="trajectories an hour", ylabel="minutes from an hour's end to its scores")
    left.legend(title="JUDGE_CONCURRENCY", fontsize=8, title_fontsize=8)
    most = 1.1 * max(max(row["seconds"], row["said"]) for row in rows)
    right.fill_between([0, most], [0, most * (1 - BOUND)], [0, most * (1 + BOUND)], color=GREY, alpha=0.4)
    for processes, colour in ((1, SERIES[0]), (2, SERIES[1])):
        chosen = [row for row in rows if row["processes"] == processes]
        right.plot([row["seconds"] for row in chosen], [row["said"] for row in chosen], "o", color=colour, label=f"processes: {processes}")
    right.set(xlim=(0, most), ylim=(0, most), xlabel="measured, s", ylabel="model, s")
    right.legend(fontsize=8)
    plain_axes((left, right))
    return png_of(figure)


def main() -> int:
    """Measure or read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure this machine and compare real runs, some minutes")
    parser.add_argument("--write", action="store_true", help=f"put tables and plot into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--latency", type=float, default=5.0, help="seconds that a judge takes for an answer, of the projections")
    given = parser.parse_args()
    if given.check:
        KEPT.write_text(json.dumps(measure(), indent=1) + "\n")
    kept = json.loads(KEPT.read_text())
    rows = compared(kept)
    tables = {"check": check_table(rows), "costs": cost_table(kept), "rates": rate_table(projected(kept, given.latency))}
    print("\n\n".join(tables.values()))
    if given.write:
        text = PAGE.read_text()
        for name, table in tables.items():
            text = re.sub(
                rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda found, table=table: found[1] + table + found[2], text, flags=re.S
            )
        PAGE.write_text(text)
        PICTURE.write_bytes(picture(kept, rows, given.latency))
    return int(any(abs(row["off"]) > BOUND for row in rows))


if __name__ == "__main__":
    sys.exit(main())
