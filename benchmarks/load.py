"""Recorder and gateway at twice their rated load while each dependency dies in turn: `make load-test MINUTES=10`.

Rated are 1,000 steps a second for the recorder and 300 requests a second for the gateway; `--rate 0.25` takes a quarter of twice that, for
a machine that others use. A Postgres, a model server and an object store of its own die (or stop answering) for `AWAY_S` seconds each, at
even distances, the last with a minute left for its return; in under four minutes not all of them. Prints a table: what was refused, the
longest loss of service, seconds until normal, and what memory and open files did. Exits with 1 and a sentence if a recorded row is lost or
twice, if all is not seen to be normal within a minute of a return, or if the gateway or its writer holds more and more.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil
import uvloop

from babylon_rl.errors import BabylonError, first_line
from babylon_rl.files.location import Location, describing_failures
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.serving.spool import spool_directory, stored_bytes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl.store.recording import add_agents
from babylon_rl.windows import utc_now
from babylon_rl_tests.object_store import running_store
from babylon_rl_tests.proxy import Proxy
from benchmarks.gateway import Caller, process
from benchmarks.recorder import AGENTS, STEPS, record

RATED_STEPS, RATED_REQUESTS, TIMES_RATED = 1_000, 300, 2
AWAY_S, NORMAL_WITHIN_S, SLOW_S, NORMAL_FOR_S = 10.0, 60.0, 1.0, 5
# Seconds before the first death, which show what is usual, and after the last one: away, started again, and a minute to be normal in.
BEFORE_S, AFTER_S, LEAST_APART_S = 20.0, AWAY_S + 20.0 + NORMAL_WITHIN_S, 40.0
# Of memory, whichever is more, and of open files, as some connections come and go.
MORE_MEMORY, MORE_MB, MORE_FILES = 0.2, 10.0, 5
LEAST_BYTES = 4_000_000
MODEL_PORT, GATEWAY_PORT = 9311, 9312
RECORDED = """SELECT "userPrompt" FROM llm_call_logs WHERE starts_with("userPrompt", 'load ')"""
LIMITED = ("gateway", "its writer")  # the agents keep what they handed over, to compare it at the end
Death = tuple[str, Callable[[], object], Callable[[], object]]  # name, end, beginning
Used = dict[str, list[tuple[int, int]]]  # bytes of memory and open files by process
Handed = tuple[list[str], float, list[str]]  # trajectories, the longest wait of an agent, refusals for want of room
SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Second:
    """One second of the load: answers by status (0: none), the slowest of them, and what waits to be written."""

    answers: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    waiting_bytes: int = 0
    waiting_trajectories: int = 0
    storage: str | None = None

    @property
    def served(self) -> bool:
        """True if every request was answered well and soon."""
        return set(self.answers) <= {200} and self.slowest_s < SLOW_S

    def normal(self, usual_bytes: int) -> bool:
        """True if nothing waits from before either; some of what comes always does, with ``usual_bytes`` at most."""
        return self.served and self.storage is None and self.waiting_bytes <= usual_bytes and self.waiting_trajectories < 500


@dataclass
class Load:
    """What the parts of the benchmark have seen, by second since ``began``."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[int, Second] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)

    def at(self, moment: float) -> Second:
        """The second in which a moment lies."""
        return self.seconds.setdefault(int(moment - self.began), Second())


async def ask_gateway(load: Load, rate: float, seconds: float) -> None:
    """Send requests at fixed times, whether or not earlier ones are answered; each has a text of its own."""
    loop, free, tasks = asyncio.get_running_loop(), list[Caller](), set[asyncio.Task[None]]()

    async def call(number: int, due: float) -> None:
        marker = f"load {number}"
        body = json.dumps(
            {"model": "base", "messages": [{"role": "user", "content": marker}], "max_tokens": 64, "temperature": 0.7}
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-babylon-agent: agent-1\r\n"
        status = 0
        with suppress(OSError, TimeoutError):
            while free and free[-1].transport.is_closing():  # the gateway ends connections that rest
                free.pop()
            caller = free.pop() if free else (await loop.create_connection(Caller, "127.0.0.1", GATEWAY_PORT))[1]
            request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
            status = (await asyncio.wait_for(caller.ask(request), 90))[0]
            free.append(caller)
        if status == 200:
            load.answered.append(marker)
        second = load.at(due)
        second.answers[status] += 1
        second.slowest_s = max(second.slowest_s, time.monotonic() - due)

    for number in range(int(rate * seconds)):
        due = load.began + number / rate
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.add(task := asyncio.create_task(call(number, due)))
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for caller in free:
        caller.transport.close()


def record_steps(url: str, home: str, rate: float, seconds: float, pipe: Pipe) -> None:
    """The agents' process: trajectories of ten steps at a rate; sends what waits every half second, then what was handed over."""
    settings = Settings(_env_file=None, babylon_rl_home=Path(home), record_agent_trajectories=True, trajectory_sampling_rate=1.0)
    handed, waits, refused = list[str](), list[float](), list[str]()
    with TrajectoryRecorder.connect(url, settings=settings) as recorder:
        began = time.monotonic()
        ended = threading.Event()

        def agent(number: int) -> None:
            for turn in range(int(rate / STEPS / AGENTS * seconds)):
                time.sleep(max(0.0, began + turn * AGENTS * STEPS / rate - time.monotonic()))
                trajectory = recorder.start_trajectory(f"agent-{number}")
                record(recorder, trajectory)
                asked = time.monotonic()
                while True:  # as the docs say: an end that finds no room may be called again
                    try:
                        recorder.end_trajectory(trajectory)
                        break
                    except BabylonError as full:
                        refused.append(first_line(full))
                waits.append(time.monotonic() - asked)
                handed.append(trajectory)

        def report() -> None:
            this = psutil.Process()
            while not ended.wait(0.5):
                pipe.send((recorder.report().waiting, this.memory_info().rss, this.num_fds()))

        thread = threading.Thread(target=report)
        thread.start()
        with ThreadPoolExecutor(AGENTS) as agents:
            list(agents.map(agent, range(AGENTS)))
        recorder.flush(NORMAL_WITHIN_S)
        ended.set()
        thread.join()
        pipe.send((handed, max(waits), refused))


def watch(
    load: Load, pipe: Pipe, gateway: psutil.Process, spool: Path, used: dict[str, list[tuple[int, int]]]
) -> tuple[list[str], float, list[str]]:
    """Note what waits and what processes hold until the agents have ended; returns what they handed over."""
    while True:
        found = pipe.recv()
        if isinstance(found[0], list):
            return found  # type: ignore[no-any-return]
        second = load.at(time.monotonic())
        second.waiting_trajectories, second.waiting_bytes = found[0], stored_bytes(spool)
        used["agents with the recorder"].append(found[1:])
        for name, one in [("gateway", gateway), *[("its writer", child) for child in gateway.children()]]:
            with suppress(psutil.NoSuchProcess):
                used[name].append((one.memory_info().rss, one.num_fds()))


def use_storage(load: Load, url: str, folder: Path, ending: threading.Event) -> None:
    """Store a file and read it back, once a second, as publishing and fetching a checkpoint do."""
    file = folder / "weights"
    while not ending.wait(1.0):
        moment, said = time.monotonic(), None
        file.write_text(str(moment))
        try:
            with describing_failures(url, lambda reason, _: BabylonError(reason)):
                place = Location(url)
                place.put(file, "weights")
                if place.read("weights") != file.read_bytes():
                    said = "another content"
        except BabylonError as failed:
            said = str(failed)
        for second in range(int(moment - load.began), int(time.monotonic() - load.began) + 1):
            load.seconds.setdefault(second, Second()).storage = said


def kill_server(cluster: Cluster) -> None:
    """End a Postgres as a power failure does."""
    os.kill(int((cluster.directory / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


def restart_server(cluster: Cluster) -> None:
    """Start it again at its port, once the killed one's processes have ended."""
    while cluster.running_port() is not None:
        time.sleep(0.05)
    cluster.start()


@contextmanager
def model_server() -> Iterator[None]:
    """A model server that answers at once."""
    with process([sys.executable, "-m", "benchmarks.gateway", "--mock", str(MODEL_PORT)], MODEL_PORT, "/"):
        yield


def moments(seconds: float, deaths: int) -> list[float]:
    """Moments of at most so many deaths at even distances, in seconds since the load began; ValueError where none has a place."""
    apart_s = seconds - BEFORE_S - AFTER_S
    if apart_s < 0:
        raise ValueError(f"a death and the return to normal take {(BEFORE_S + AFTER_S) / 60:.1f} minutes")
    number = min(deaths, 1 + int(apart_s / LEAST_APART_S))
    return [BEFORE_S + apart_s * turn / max(1, number - 1) for turn in range(number)]


def kill_in_turn(load: Load, deaths: Sequence[tuple[float, Death]]) -> list[tuple[str, int, int]]:
    """Let each die at its moment for AWAY_S; returns the seconds in which it went and was back."""
    happened = list[tuple[str, int, int]]()
    for moment, (name, kill, restart) in deaths:
        time.sleep(max(0.0, load.began + moment - time.monotonic()))
        went = time.monotonic() - load.began
        kill()
        time.sleep(AWAY_S)
        restart()
        happened.append((name, int(went), int(time.monotonic() - load.began)))
        print(f"{name} was away from second {went:.0f} to {happened[-1][2]}", file=sys.stderr, flush=True)
    return happened


def row(load: Load, name: str, went: int, back: int, until: int, usual_bytes: int = LEAST_BYTES) -> dict[str, Any]:
    """The table's row of one death: from the second in which it went to the one before the next death.

    All is normal again where NORMAL_FOR_S normal seconds begin, never (None) if that was not seen; ``s_not_normal`` counts the others since
    the return.
    """
    during = {at: load.seconds.get(at, Second()) for at in range(went, until)}
    refused = sum((second.answers for second in during.values()), Counter[int]())
    refused.pop(200, None)
    unserved = [at for at, second in during.items() if not second.served]
    after = [during[at].normal(usual_bytes) for at in range(back, until)]
    longest = streak = 0
    for at in range(went, until):
        streak = streak + 1 if at in unserved else 0
        longest = max(longest, streak)
    return {
        "dependency": name, "away_s": back - went, "refused_by_status": dict(refused), "longest_loss_of_service_s": longest,
        "s_until_normal": next((at for at in range(len(after) - NORMAL_FOR_S + 1) if all(after[at : at + NORMAL_FOR_S])), None),
        "s_not_normal": sum(not normal for normal in after),
        "most_waiting_trajectories": max(second.waiting_trajectories for second in during.values()),
        "most_waiting_mb": round(max(second.waiting_bytes for second in during.values()) / 1e6, 1),
        "storage_refused_s": sum(second.storage is not None for second in during.values()),
    }  # fmt: skip


def level(values: list[tuple[int, int]]) -> dict[str, Any]:
    """Megabytes and open files of a process: medians of the second and of the last tenth of the run, and the most."""
    tenth = max(1, len(values) // 10)
    early, late = values[tenth : 2 * tenth] or values, values[-tenth:]
    megabytes = [round(statistics.median(value for value, _ in part) / 1e6, 1) for part in (early, late)]
    files = [statistics.median(value for _, value in part) for part in (early, late)]
    return {"mb": megabytes, "most_mb": round(max(value for value, _ in values) / 1e6, 1), "files": files}


def broken(lost: int, twice: int, rows: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The promises that were broken, a sentence each; ``levels`` by process."""
    said = [f"{count} recorded rows are {what}." for count, what in ((lost, "lost"), (twice, "there twice")) if count]
    for one in rows:
        if one["s_until_normal"] is None or one["s_until_normal"] > NORMAL_WITHIN_S:
            said.append(f"{one['dependency']}: all was not normal within {NORMAL_WITHIN_S:g} s of its return.")
    for name in LIMITED:
        (early_mb, late_mb), (early_files, late_files) = levels[name]["mb"], levels[name]["files"]
        if late_mb - early_mb > max(MORE_MB, MORE_MEMORY * early_mb):
            said.append(f"{name}: memory went from {early_mb:g} to {late_mb:g} MB.")
        if late_files - early_files > MORE_FILES:
            said.append(f"{name}: open files went from {early_files:g} to {late_files:g}.")
    return said


def main() -> int:
    """Run it and print the rows as JSON lines; 1 if the promise is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1.0, help="share of twice the rated load")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its children keep fixed ports
    seconds, share = options.minutes * 60, TIMES_RATED * options.rate
    try:
        when = moments(seconds, 3 * max(1, round(options.minutes / 4)))
    except ValueError as short:
        parser.error(f"--minutes {options.minutes:g} is too short: {short}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        cluster = Cluster(home)
        cluster.create()
        url = cluster.url(cluster.start())
        stack.callback(cluster.stop)
        database = Database(url, url)
        migrate(database)
        with database.connect() as connection:
            add_agents(connection, [(f"agent-{number}", f"Agent {number}") for number in range(AGENTS)], utc_now())
        model = ExitStack()
        stack.push(model)
        model.enter_context(model_server())
        store = stack.enter_context(running_store())
        bucket, network = store.bucket(), stack.enter_context(Proxy(store.address))
        variables = {"LOCAL_ENDPOINT": f"http://127.0.0.1:{MODEL_PORT}", "BABYLON_RL_HOME": folder, "DATABASE_URL": url}
        command = [sys.executable, "-m", "babylon_rl", "serve", "gateway", "--port", str(GATEWAY_PORT)]
        gateway = stack.enter_context(process(command, GATEWAY_PORT, "/health", **variables))
        spool = spool_directory(Settings(_env_file=None, babylon_rl_home=home))

        def restart_model() -> None:
            model.enter_context(model_server())

        ours, theirs = SPAWN.Pipe()
        agents = SPAWN.Process(target=record_steps, args=(url, folder, RATED_STEPS * share, seconds, theirs))
        agents.start()
        ours.recv()  # it has begun
        load, ending = Load(), threading.Event()
        used: Used = {"gateway": [], "its writer": [], "agents with the recorder": []}
        kinds: list[Death] = [
            ("database", lambda: kill_server(cluster), lambda: restart_server(cluster)), ("model server", model.close, restart_model),
            ("object storage", lambda: network.cut(away=True), network.heal),
        ]  # fmt: skip
        deaths = list(zip(when, cycle(kinds), strict=False))
        with ThreadPoolExecutor(4) as pool, stored_at(network.url, store.variables):
            storing = pool.submit(use_storage, load, bucket, home, ending)
            killing = pool.submit(kill_in_turn, load, deaths)
            watching = pool.submit(watch, load, ours, gateway, spool, used)
            uvloop.run(ask_gateway(load, RATED_REQUESTS * share, seconds))
            happened, (handed, longest_wait_s, full) = killing.result(), watching.result()
            ending.set()
            storing.result()
        agents.join()
        deadline = time.monotonic() + NORMAL_WITHIN_S
        with database.connect(autocommit=True) as connection:
            while True:
                recorded = Counter(text for (text,) in connection.execute(RECORDED))
                if not set(load.answered) - set(recorded) or time.monotonic() > deadline:
                    break
                time.sleep(0.5)
            kept = Counter(name for (name,) in connection.execute('SELECT "trajectoryId" FROM trajectories'))
        ends = [went for _, went, _ in happened[1:]] + [int(seconds)]
        # As much as before the first death, and a bit: the writer empties the gateway's files every few seconds.
        before = (second.waiting_bytes for at, second in load.seconds.items() if at < happened[0][1])
        usual_bytes = round(max(LEAST_BYTES, 1.1 * max(before, default=0)))
        rows = [row(load, name, went, back, until, usual_bytes) for (name, went, back), until in zip(happened, ends, strict=True)]
        for one in rows:
            print(json.dumps(one))
        lost = len(set(load.answered) - set(recorded)), len(set(handed) - set(kept))
        twice = sum(number > 1 for number in recorded.values()) + sum(number > 1 for number in kept.values())
        asked = sum(sum(second.answers.values()) for second in load.seconds.values())
        print(json.dumps({
            "minutes": options.minutes, "steps_a_second": RATED_STEPS * share, "requests_a_second": RATED_REQUESTS * share,
            "requests": asked, "answered": len(load.answered), "trajectories": len(handed), "calls_lost": lost[0],
            "trajectories_lost": lost[1], "rows_twice": twice, "agent_waited_most_s": round(longest_wait_s, 1),
            "ends_without_room": len(full),
        }))  # fmt: skip
        levels = {name: level(values) for name, values in used.items()}
        for name, found in levels.items():
            print(json.dumps({"process": name} | found))
        said = broken(sum(lost), twice, rows, levels)
        for sentence in said:
            print(sentence, file=sys.stderr)
        return 1 if said else 0


@contextmanager
def stored_at(address: str, variables: dict[str, str]) -> Iterator[None]:
    """The environment in which the storage's driver finds it."""
    before = dict(os.environ)
    os.environ.update(variables | {"AWS_ENDPOINT_URL": address})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    sys.exit(main())
