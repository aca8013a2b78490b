"""docs/evidence/judge-report.md: `python benchmarks/judge_report.py [--write]` judges real hours and prints the two reports.

The recorded game's ready hours and 48 simulated ones are judged by the scripted judge (noise 0.1, position bias 0.3) in two orders or,
where these disagree, four; some of them by a second one too (noise 0.15, no bias), on an embedded server of its own. Nothing leaves the
machine; latencies differ by run.
"""

import argparse
import contextlib
import gzip
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from babylon_rl.cli.judge import PREFIX
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.hindsight import sync_hindsight
from babylon_rl.judge.reliability.audit import AuditResult, audit
from babylon_rl.judge.reliability.plots import draw_plots
from babylon_rl.judge.reliability.report import ReliabilityReport, reliability_report, report_rows
from babylon_rl.judge.scoring import score_windows
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.reporting.numbers import markdown_table
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.store.migrate import migrate
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.windows import window_range
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "babylon_rl_tests" / "data" / "babylon_realtime.sql.gz"
DOCS = ROOT / "docs"
NOW = datetime(2026, 3, 1, 12)
HOURS, AGENTS, AUDITED = 48, 8, 20
SIMULATED = ("2026-02-01T00:00", "2026-02-03T00:00")
JUDGE, SECOND = "openai/scripted", "openai/second"
FIRST_JUDGE = ScriptedJudge(noise=0.1, position_bias=0.3, latency_s=0.3, jitter_s=0.2)
SECOND_JUDGE = ScriptedJudge(seed=1, noise=0.15, latency_s=0.3, jitter_s=0.2, model="second")
SECRET = b"the same secret gives the same page"[:32]  # of requests: ids, orders and so the judge's noise follow from it


@dataclass(frozen=True)
class Measured:
    """One database's report, and what the second judge was asked for it."""

    report: ReliabilityReport
    audited: AuditResult | None


@contextlib.contextmanager
def databases() -> Iterator[tuple[Connection, Connection]]:
    """Two migrated databases: the recorded game, and one with simulated hours."""
    with tempfile.TemporaryDirectory(prefix="babylon-rl-report-") as home, use_server(Path(home)) as url:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute("CREATE DATABASE recorded")
            server.execute("CREATE DATABASE simulated")
        recorded, simulated = (f"{url.rpartition('/')[0]}/{name}" for name in ("recorded", "simulated"))
        psql = Cluster(Path(home)).programs / "psql"
        sql = gzip.decompress(SAMPLE.read_bytes())
        subprocess.run([psql, "-q", "-X", "-v", "ON_ERROR_STOP=1", recorded], input=sql, stdout=subprocess.DEVNULL, check=True)
        for address in (recorded, simulated):
            migrate(Database(address, address))
        with connect(recorded, autocommit=True) as one, connect(simulated, autocommit=True) as two:
            spawn(two, SpawnRequest(AGENTS, 0, HOURS, 0, start=SIMULATED[0]), NOW, None)
            yield one, two


def measure(connection: Connection, span: tuple[str, str], chosen: Settings, second_url: str) -> Measured:
    """Judge the hours of a database, ask the second judge at its own address, and report."""
    windows = [window for window in windows_with_rows(connection, *span) if window in set(window_range(*span))]
    keep_secret(connection, SECRET, NOW)
    sync_windows(connection, windows, chosen, NOW)
    sync_outcomes(connection, windows, chosen, NOW)
    sync_hindsight(connection, windows, chosen, NOW)
    scored = score_windows(connection, windows, chosen, NOW)
    audited = audit(connection, chosen.model_copy(update={"judge_base_url": second_url}), list(scored), NOW, groups=AUDITED)
    again = score_windows(connection, windows, chosen, NOW)
    assert not any(group.changed for group in again.values()) and not again.asked, "a second run asks nothing"
    return Measured(reliability_report(connection, *span, chosen), audited)


def page(recorded: Measured, simulated: Measured) -> str:
    """docs/evidence/judge-report.md."""
    shown = "\n\n".join(f"![{title}](../images/{PREFIX}{name}.png)" for name, title in TITLES.items())
    numbers = [{name: number for name, number, _ in report_rows(measured.report)} for measured in (simulated, recorded)]
    rows = [[name, *(found.get(name, "-") for found in numbers)] for name in numbers[0] if name not in UNMEASURED]
    slope = simulated.report.position_slope
    return TEXT.format(
        table=markdown_table(("", f"{HOURS} simulated hours", "the recorded game's ready hours"), rows),
        shown=shown, slope=slope.value if slope else float("nan"), hours=HOURS, agents=AGENTS,
    )  # fmt: skip


UNMEASURED = ("with expected P&L", "cost")  # by `judge calibrate`; of a judge without a price
TITLES = {
    "position": "Score against place in the request",
    "agreement": "Agreement between orders, by hour",
    "pnl": "Score against P&L",
    "cost": "Cost by day",
}
TEXT = """# A report on a judge

Made by `python benchmarks/judge_report.py --write`. [The judge](../explanation/judge.md) says what each number means.

The judge is [scripted](../../babylon_rl_tests/scripted_judge/README.md): it knows each agent's profit, adds noise of 0.1, and gives the
first place of a request 0.3 more than the last. The second judge has noise of 0.15 and no bias. Every group is shown in two orders, one
the other backwards, and in two more where these differ by more than 0.15. {agents} scripted agents play the {hours} simulated hours.

{table}

With 95 % intervals over hours. The report finds what was built in:

* **Position bias** -0.3 is found as {slope:+.3f}, as scores end at 0 and 1. The mean over an order and its reverse holds none of it.
* **Length** says nothing to this judge.
* **P&L** is all that it judges by: only noise and the ends of the scale keep the correlation below 1.

{shown}
"""


def main() -> None:
    """Judge, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/evidence/judge-report.md and its pictures")
    arguments = parser.parse_args()
    plain = {name: field.default for name, field in Settings.model_fields.items()}
    with running(FIRST_JUDGE) as url, running(SECOND_JUDGE) as second_url, databases() as (game, market):
        values = {"judge_base_url": url, "judge_model": JUDGE, "judge_audit_model": SECOND}
        chosen = Settings(_env_file=None, **(plain | values | {"judge_concurrency": 4}))
        recorded = ("2025-10-01T00:00", "2025-12-01T00:00")
        found = measure(game, recorded, chosen, second_url), measure(market, SIMULATED, chosen, second_url)
    text = page(*found)
    print(text)
    if arguments.write:
        (DOCS / "evidence" / "judge-report.md").write_text(text)
        for name, png in draw_plots(found[1].report).items():
            (DOCS / "images" / f"{PREFIX}{name}.png").write_bytes(png)


if __name__ == "__main__":
    main()
