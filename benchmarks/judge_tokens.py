"""Tokens of a judge's request, ours beside ART's: `python benchmarks/judge_tokens.py [--database URL]` prints a line for each ready hour.

ART's RULER gets each usable episode as the messages of its LLM calls, as they were served, and sends its request to a server of this
file's that keeps it; episodes without a recorded call get the texts that an export would synthesize for them. Ours is what
``plan_requests`` makes with the settings' defaults, the market's context included. Both are counted in o200k_base. The bound is 0.6 of
ART's with every call of an episode; with calls of purpose ``action`` alone the ratio is printed as well.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from babylon_rl.cli.caches import keep_caches_at_home
from babylon_rl.episodes.decode import Fault, decode
from babylon_rl.episodes.reading import read_windows
from babylon_rl.episodes.trajectories import synthetic
from babylon_rl.judge.prompt.render import read_transcripts, render_groups
from babylon_rl.judge.prompt.request import plan_requests
from babylon_rl.llm.tokens import token_counter
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl.store.trajectories import trajectories_by_id, windows_with_rows
from babylon_rl.types import Episode, WindowReading

SAMPLE = Path(__file__).parents[1] / "babylon_rl_tests" / "data" / "babylon_realtime.sql.gz"
MODEL = "openai/gpt-4o-mini"
BOUND = 0.6
Messages = list[dict[str, str]]


class Keeper(HTTPServer):
    """Keeps the messages of the last request; its answer scores everyone 0.5."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: Messages = []
        self.episodes = 0


class _Handler(BaseHTTPRequestHandler):
    server: Keeper

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.messages = body["messages"]
        scores = [{"trajectory_id": str(n), "explanation": "", "score": 0.5} for n in range(1, self.server.episodes + 1)]
        message = {"role": "assistant", "content": json.dumps({"scores": scores})}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        packed = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def sample(given: str | None) -> Iterator[str]:
    """The address of the database with the recorded game."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="babylon-rl-tokens-") as home, use_server(Path(home)) as url:
        psql = Cluster(Path(home)).programs / "psql"
        sql = gzip.decompress(SAMPLE.read_bytes())
        subprocess.run([psql, "-q", "-X", "-v", "ON_ERROR_STOP=1", url], input=sql, stdout=subprocess.DEVNULL, check=True)
        migrate(Database(url, url))
        yield url


def served(connection: Connection, episode: Episode, *, every: bool) -> Messages:
    """An episode's messages as ART takes them: what each call was served and answered; ``every`` call, or those that act."""
    recorded = read_transcripts(connection, episode.trajectory_ids)
    found: Messages = []
    for trajectory_id in episode.trajectory_ids:
        steps = recorded.get(trajectory_id, [])
        calls = [call for step in steps for call in step.calls if every or step.action_type not in ("CREATE_POST", "CREATE_COMMENT")]
        for call in calls:
            system = [{"role": "system", "content": call.system}] if call.system else []
            found += [*system, {"role": "user", "content": call.prompt}, {"role": "assistant", "content": call.response}]
        if not any(step.calls for step in steps):
            found += made_up(connection, trajectory_id)
    return found


def made_up(connection: Connection, trajectory_id: str) -> Messages:
    """The texts that stand for steps without a call."""
    found: Messages = []
    for row in trajectories_by_id(connection, [trajectory_id]):
        decoded = decode(row)
        for index, step in enumerate([] if isinstance(decoded, Fault) else decoded.completed):
            text = synthetic(step, trajectory_id, index)
            found += [*text.messages, {"role": "assistant", "content": text.response}]
    return found


def art_tokens(connection: Connection, reading: WindowReading, keeper: Keeper, *, every: bool) -> int:
    """The tokens of the request that RULER makes of an hour's group."""
    import art
    from art.rewards import ruler_score_group

    lists = [served(connection, episode, every=every) for episode in reading.usable_episodes]
    group = art.TrajectoryGroup([art.Trajectory(messages_and_choices=list(messages), reward=0.0) for messages in lists])
    keeper.episodes = len(lists)
    address = {"api_base": f"http://127.0.0.1:{keeper.server_port}/v1", "api_key": "none"}
    asyncio.run(ruler_score_group(group, MODEL, address))
    count = token_counter(MODEL)
    return sum(count(message["content"]) for message in keeper.messages)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="a migrated database with a recorded game instead of the sample")
    arguments = parser.parse_args()
    keep_caches_at_home()
    settings = Settings(_env_file=None, judge_model=MODEL, openai_api_key="none")
    count = token_counter(MODEL)
    keeper = Keeper()
    threading.Thread(target=keeper.serve_forever, daemon=True).start()
    hours = []
    with sample(arguments.database) as url, Connection.connect(url) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        readings = read_windows(connection, windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00"), settings)
        ready = {window: reading for window, reading in readings.items() if reading.ready}
        for window, group in render_groups(connection, ready, settings).items():
            requests = plan_requests(group, MODEL, 0, b"0" * 32, settings)
            ours = [sum(count(message["content"]) for message in request.messages) for request in requests]
            theirs = {every: art_tokens(connection, ready[window], keeper, every=every) for every in (True, False)}
            hours.append(
                {
                    "window": window, "episodes": len(group.episodes), "requests": ours, "steps_left_out": group.left_out,
                    "context": count("\n".join(group.context)), "art": theirs[True], "ratio": round(sum(ours) / theirs[True], 3),
                    "art_actions_alone": theirs[False], "ratio_to_actions_alone": round(sum(ours) / theirs[False], 3),
                }
            )  # fmt: skip
            print(json.dumps(hours[-1]), flush=True)
    worst = max(hour["ratio"] for hour in hours)
    print(json.dumps({"hours": len(hours), "worst_ratio": worst, "bound": BOUND, "within": worst <= BOUND}))


if __name__ == "__main__":
    main()
