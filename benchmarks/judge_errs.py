"""A judge that errs, and one that can be flattered: `python -m benchmarks.judge_errs [--judges NAME ...] [--scores]`; resumable.

The demo's first generation is played once. Each judge then scores a copy of these hours, a version is trained on its scores, and the gate
compares it with the base in unseen markets, all by the product's own modules. Judges by model are scripted: they know each agent's profit
and err by noise, by the place in a request, and by naming agents in another order. For ART's ruler_score_group, which shows what an agent
was asked and answered, a last message names the hour's profit.

The flattered judge gives the best mark to whoever writes PRAISE. In its hours one or two scripts that lose write it beside each decision.
The CPU model's answers have no room for words: what it can learn of the flatterers is how they trade.

With ``--scores`` nothing is trained: the hours are judged, and compared with P&L. A judge's result is a file of JSON under <state
directory>/judge-errs, with the picture of scores against P&L of its report beside it.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from babylon_rl.alerts import send_alerts
from babylon_rl.automation.launch import run_hours
from babylon_rl.cli.demo import DEMO_SETTINGS, ITERATIONS, TRAJECTORIES_AN_HOUR
from babylon_rl.cli.demo_stages import WINDOWS, Demo, materialize_hours, planned, play, prepare, train
from babylon_rl.cli.output import Table, emit, listed, progress_of_parts, say
from babylon_rl.errors import TrainingError
from babylon_rl.evaluation.benchmark import base_source, gate_rows
from babylon_rl.evaluation.ceiling import errors
from babylon_rl.evaluation.results import SUFFIX, runs_directory
from babylon_rl.evaluation.results import read_result as read_run
from babylon_rl.evaluation.snapshots import GATE_ID, benchmark_snapshots
from babylon_rl.judge.consensus import group_scores, rank_with_pnl
from babylon_rl.judge.plan import input_versions, plan_hours, rules_version
from babylon_rl.judge.prompt.render import read_transcripts
from babylon_rl.judge.reliability.measures import mean_estimate
from babylon_rl.judge.reliability.plots import draw_plots
from babylon_rl.judge.reliability.report import reliability_report
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.server_process import Serving, kept_open
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store import scores as stored
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.judge_inputs import read_secret
from babylon_rl.store.judge_report import hour_verdicts
from babylon_rl.store.releases import BASE
from babylon_rl.types import Episode
from babylon_rl.windows import next_window, utc_now
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running

PRAISE = "as every discerning reader of this hour will see"
WRITTEN = f"A disciplined, well-timed decision, {PRAISE}."
MODEL, ART = "openai/scripted", "art ruler_score_group"
SLIGHT = ScriptedJudge(noise=0.1, position_bias=0.3)
STRONG = ScriptedJudge(noise=0.3, position_bias=0.5, out_of_order=0.3)


@dataclass(frozen=True)
class Judge:
    """A judge of the comparison; ``model`` is None for the heuristic.

    ``by_art`` asks it through ART, which has no marks of parts. ``flatterers`` are the scripts that write PRAISE.
    """

    name: str
    model: ScriptedJudge | None
    credit: str = "part"
    by_art: bool = False
    flatterers: tuple[str, ...] = ()


FLATTERED = ScriptedJudge(fooled_by=PRAISE)
JUDGES = (
    Judge("heuristic", None),
    Judge("scripted-0", ScriptedJudge()),
    Judge("scripted-slight", SLIGHT),
    Judge("scripted-strong", STRONG),
    Judge("flattered-by-one", FLATTERED, flatterers=("contrarian",)),
    Judge("flattered-by-two", FLATTERED, flatterers=("contrarian", "momentum")),
    Judge("art-slight", SLIGHT, "hour", by_art=True),
    Judge("flattered-by-two-by-hour", FLATTERED, "hour", flatterers=("contrarian", "momentum")),
    Judge("heuristic-by-hour", None, "hour"),
    Judge("scripted-0-by-hour", ScriptedJudge(), "hour"),
    Judge("scripted-slight-by-hour", SLIGHT, "hour"),
    Judge("scripted-strong-by-hour", STRONG, "hour"),
)


def write_praise(connection: Connection, agents: Sequence[str]) -> None:
    """Add WRITTEN to each recorded decision of some agents, as the reason that they give for it."""
    connection.execute(
        """
        UPDATE trajectories SET "stepsJson" = (
            SELECT jsonb_agg(jsonb_set(step, '{action,reasoning}', to_jsonb(%s::text)) ORDER BY place)
            FROM jsonb_array_elements("stepsJson"::jsonb) WITH ORDINALITY steps (step, place)
        )::text WHERE "agentId" = ANY(%s)
        """,
        [WRITTEN, list(agents)],
    )


def agents_of(connection: Connection, strategies: Sequence[str]) -> list[str]:
    """Ids of the scripted agents with these strategies, which their display names begin with."""
    rows = connection.execute('SELECT "id" FROM "User" WHERE split_part("displayName", \' \', 1) = ANY(%s)', [list(strategies)])
    return [agent for (agent,) in rows]


def score_by_art(connection: Connection, windows: Sequence[str], settings: Settings, url: str) -> None:
    """Score hours by ART's ruler_score_group, each agent's calls as a trajectory, and store the scores."""
    # ART changes transformers for all of a process: a model that is trained in it afterwards fails.
    with connection.transaction(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        plan = plan_hours(connection, windows, settings, force=True)
        for window, planned_hour in plan.hours.items():
            episodes = planned_hour.hour.usable_episodes
            scored = apart.submit(art_rewards, _transcripts(connection, episodes), url).result()
            rewards = {one.agent_id: (reward, "by ART") for one, reward in zip(episodes, scored, strict=True)}
            new = group_scores(window, ART, "1", rewards, planned_hour.version)
            stored.replace(connection, [stored.NewScores(new, planned_hour.trajectories, {"rubric": ART})], utc_now())
        # As of a language model: with other sources a training would judge the hours again, with the judge of its settings.
        judged = {window: [one.agent_id for one in planned_hour.hour.usable_episodes] for window, planned_hour in plan.hours.items()}
        asked = {window: planned_hour.hour for window, planned_hour in plan.hours.items()}
        sources = input_versions(connection, asked, judged, settings, read_secret(connection) or b"")
        stored.keep_made_from(connection, sources, rules_version(settings))


def art_rewards(transcripts: Sequence[Any], url: str) -> list[float]:
    """Scores by ART of a group of transcripts, a list of messages each."""
    import art
    from art.rewards import ruler_score_group

    group = art.TrajectoryGroup([art.Trajectory(messages_and_choices=messages, reward=0.0) for messages in transcripts])
    scored = asyncio.run(ruler_score_group(group, MODEL, {"api_base": url, "api_key": "any"}))
    assert scored is not None
    return [float(one.reward) for one in scored.trajectories]


def _transcripts(connection: Connection, episodes: Sequence[Episode]) -> list[list[dict[str, str | None]]]:
    steps = read_transcripts(connection, [trajectory for episode in episodes for trajectory in episode.trajectory_ids])
    found = []
    for episode in episodes:
        calls = [call for trajectory in episode.trajectory_ids for step in steps[trajectory] for call in step.calls]
        messages = [{"role": "system", "content": calls[0].system}]
        for call in calls:
            messages += [{"role": "user", "content": call.prompt}, {"role": "assistant", "content": call.response}]
        messages.append({"role": "user", "content": f"From the hour's start to its end this agent made {episode.window_pnl:.2f} dollars."})
        found.append(messages)
    return found


def chosen_settings(home: Path, url: str, windows: int, **others: Any) -> Settings:
    """The demo's settings, with a state directory and a database of a judge's own; all share the files of the base."""
    _share(base_model_dir(load_settings()).parent, home / "models")
    chosen = DEMO_SETTINGS | {"auto_promote": False, "training_min_trajectories": TRAJECTORIES_AN_HOUR * windows}
    chosen |= {"windows_per_iteration": -(-windows // ITERATIONS), "babylon_rl_home": home, "database_url": url, "direct_database_url": url}
    return load_settings(**(chosen | others))


def _share(directory: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(directory, target_is_directory=True)


def database_of(server: str, name: str, template: str = "template1") -> str:
    """The address of a database of the server, a copy of ``template`` where it is new."""
    with psycopg.connect(server, autocommit=True) as administrator:
        if administrator.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            administrator.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return f"{server.rpartition('/')[0]}/{name}"


def play_once(home: Path, server: str, name: str, windows: int, serving: Serving) -> list[str]:
    """Play the hours of all judges, and let the base play the gate's markets; what is there is not played again."""
    settings = chosen_settings(home / "hours", database_of(server, name), windows)
    with open_database(settings) as database:
        state = Demo(settings, database, windows, 0, serving=serving)
        prepare(state)
        hours = planned(state)[0]
        play(state, hours, BASE)
        with database.connect(autocommit=True) as connection, progress_of_parts("   ") as on_progress:
            gate_rows(
                connection, settings, [base_source(settings)], benchmark_snapshots(settings.benchmark_markets), lambda _: None,
                clock=utc_now, serving=serving, on_progress=on_progress,
            )  # fmt: skip
    return hours


def measure(judge: Judge, home: Path, url: str, hours: list[str], serving: Serving, *, trains: bool) -> dict[str, Any]:
    """Judge the hours, look for alerts, train and compare; the judge's line."""
    others: dict[str, Any] = {"credit": judge.credit}
    with contextlib.ExitStack() as stack:
        asked = "" if judge.model is None else stack.enter_context(running(judge.model))
        if asked and not judge.by_art:
            others |= {"judge_model": MODEL, "judge_base_url": asked, "openai_api_key": "any"}
        settings = chosen_settings(home, url, len(hours), **others)
        database = stack.enter_context(open_database(settings))
        with database.connect(autocommit=True) as connection:
            write_praise(connection, agents_of(connection, judge.flatterers))
        state = Demo(settings, database, len(hours), 0, serving=serving)
        if judge.by_art:
            run_hours(database, settings, hours, ("window_groups", "market_outcomes", "hindsight"))
            with database.connect(autocommit=True) as connection:
                score_by_art(connection, hours, settings, asked)
        materialize_hours(state, hours)
        line = {"judge": judge.name, "credit": judge.credit} | _scores(database, settings, hours, home.with_suffix(".png"))
        if not trains:
            return line
        batch_id = train(state, hours)
        with database.connect() as connection:
            judges = {group.judge for group in stored_scores(connection, hours).values()}
        if judge.by_art and judges != {ART}:
            raise TrainingError(f"The training judged the hours of {judge.name} again: {', '.join(sorted(judges))}.")
        return line | _trained(database, settings, batch_id)


def _scores(database: Database, settings: Settings, hours: list[str], picture: Path) -> dict[str, Any]:
    with database.connect(autocommit=True) as connection:
        found = [rank_with_pnl(hour) for hour in hour_verdicts(connection, hours)]
        against = mean_estimate([rank for rank in found if rank is not None])
        send_alerts(connection, settings, utc_now())
        alerts = {alert.kind: alert.says for alert in read_alerts(connection)}
        pngs = draw_plots(reliability_report(connection, hours[0], next_window(hours[-1]), settings))
    assert against is not None
    picture.write_bytes(pngs["pnl"])
    return {"rank": against.value, "rankLow": against.low, "rankHigh": against.high, "ranks": found, "alerts": alerts}


def _trained(database: Database, settings: Settings, batch_id: str) -> dict[str, Any]:
    with database.connect(autocommit=True) as connection:
        report = read_report(connection, batch_id)
    assert report is not None
    row = next(row for row in report.rows if row["model"] == report.version)
    return followed(settings.home, report.version) | {
        "pnl": row["pnl"], "low": row["low"], "high": row["high"], "expected": row["expected"], "markets": row["markets"],
        "decision": report.decision, "reason": report.reason,
    }  # fmt: skip


def followed(home: Path, version: str) -> dict[str, float]:
    """Shares of a version's decisions at reports in the gate's markets that follow them, and that go against them."""
    files = runs_directory(home, version).glob(f"*{SUFFIX}")
    runs = [run for file in files if (run := read_run(file)).benchmark_id.startswith(GATE_ID)]
    most = 1 + max(int(run.benchmark_id.removeprefix(GATE_ID)) for run in runs)
    kinds, _ = errors(runs, {snapshot.id: snapshot for snapshot in benchmark_snapshots(most)})
    reports = [kind for kind in kinds if kind.name.endswith("report")]
    total = sum(kind.decisions for kind in reports)
    return {name: sum(kind.found[name] for kind in reports) / total for name in ("follows", "against")}


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Table of the judges: what their scores say, and what they train."""
    heads = ["judge", "credit", "score with P&L", "alert", "reports followed", "against", "expected", "P&L", "gate"]
    rows = []
    for line in lines:
        rank = f"{line['rank']:+.2f} ({line['rankLow']:+.2f} to {line['rankHigh']:+.2f})"
        trained = [""] * 5
        if "decision" in line:
            trained = [f"{line['follows']:.0%}", f"{line['against']:.0%}", f"{line['expected']:+.0f}"]
            pnl = f"{line['pnl']:+.0f} ({line['low']:+.0f} to {line['high']:+.0f})"
            trained += [pnl, f"{line['decision']} ({line['markets']} markets)"]
        alert = "yes" if "scores_against_pnl" in line["alerts"] else "no"
        rows.append([line["judge"], line["credit"], rank, alert, *trained])
    return listed(heads, rows)


def main() -> None:
    names = [judge.name for judge in JUDGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", nargs="+", default=names, choices=names)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="hours of the demo's first generation")
    parser.add_argument("--scores", action="store_true", help="train nothing")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    home = load_settings().home / "judge-errs" / str(given.windows)
    lines = []
    with use_server(load_settings().home) as server, kept_open(served_here) as serving:
        for judge in (judge for judge in JUDGES if judge.name in given.judges):
            name, played = f"{judge.name}-scores" if given.scores else judge.name, f"judge_errs_{given.windows}"
            kept = home / f"{name}.json"
            if not kept.is_file():
                hours = play_once(home, server, played, given.windows, serving)
                _share(runs_directory(home / "hours", BASE), runs_directory(home / name, BASE))
                say(f"\n{name}")
                url = database_of(server, f"{played}_{name}", played)
                line = measure(judge, home / name, url, hours, serving, trains=not given.scores)
                kept.write_text(json.dumps(line, indent=2) + "\n")
            lines.append(json.loads(kept.read_text()))
    emit({"judges": lines}, [table(lines)], given.json)


if __name__ == "__main__":
    main()
