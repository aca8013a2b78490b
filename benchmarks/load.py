"""Recorder and gateway at twice their rated load while each dependency dies in turn: `make load-test MINUTES=10`.

Rated are 1,000 steps a second for the recorder and 300 requests a second for the gateway; `--rate 0.25` takes a quarter of twice that, for
a machine that others use. A Postgres, a model server and an object store of its own die (or stop answering) for `AWAY_S` seconds each, at
even distances. Prints a table: what was refused, the longest loss of service, seconds until normal, and what memory and open files did.
Exits with 1 if a recorded row is lost or twice, or if anything takes a minute to be normal again.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

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
LEAST_BYTES = 4_000_000
MODEL_PORT, GATEWAY_PORT = 9311, 9312
RECORDED = """SELECT "userPrompt" FROM llm_call_logs WHERE starts_with("userPrompt", 'load ')"""
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


def kill_in_turn(
    load: Load, seconds: float, deaths: list[tuple[str, Callable[[], object], Callable[[], object]]]
) -> list[tuple[str, int, int]]:
    """Let each die for AWAY_S at even distances; returns the seconds in which it went and was back."""
    apart, happened = seconds / len(deaths), list[tuple[str, int, int]]()
    for number, (name, kill, restart) in enumerate(deaths):
        time.sleep(max(0.0, load.began + apart * (number + 0.4) - time.monotonic()))
        went = time.monotonic() - load.began
        kill()
        time.sleep(AWAY_S)
        restart()
        happened.append((name, int(went), int(time.monotonic() - load.began)))
        print(f"{name} was away from second {went:.0f} to {happened[-1][2]}", file=sys.stderr, flush=True)
    return happened


def row(load: Load, name: str, went: int, back: int, until: int, usual_bytes: int = LEAST_BYTES) -> dict[str, object]:
    """The table's row of one death: from the second in which it went to the one before the next death.

    All is normal again where NORMAL_FOR_S normal seconds begin; ``s_not_normal`` counts the others since the return.
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
        "s_until_normal": next((at for at in range(len(after) - NORMAL_FOR_S + 1) if all(after[at : at + NORMAL_FOR_S])), len(after)),
        "s_not_normal": sum(not normal for normal in after),
        "most_waiting_trajectories": max(second.waiting_trajectories for second in during.values()),
        "most_waiting_mb": round(max(second.waiting_bytes for second in during.values()) / 1e6, 1),
        "storage_refused_s": sum(second.storage is not None for second in during.values()),
    }  # fmt: skip


def level(values: list[tuple[int, int]]) -> dict[str, object]:
    """Megabytes and open files of a process: medians of the second and of the last tenth of the run, and the most."""
    tenth = max(1, len(values) // 10)
    early, late = values[tenth : 2 * tenth] or values, values[-tenth:]
    megabytes = [round(statistics.median(value for value, _ in part) / 1e6, 1) for part in (early, late)]
    files = [statistics.median(value for _, value in part) for part in (early, late)]
    return {"mb": megabytes, "most_mb": round(max(value for value, _ in values) / 1e6, 1), "files": files}


def main() -> int:
    """Run it and print the rows as JSON lines; 1 if the promise is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1.0, help="share of twice the rated load")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its children keep fixed ports
    seconds, share = options.minutes * 60, TIMES_RATED * options.rate
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
        deaths: list[Death] = [
            ("database", lambda: kill_server(cluster), lambda: restart_server(cluster)), ("model server", model.close, restart_model),
            ("object storage", lambda: network.cut(away=True), network.heal),
        ] * max(1, round(options.minutes / 4))  # fmt: skip
        with ThreadPoolExecutor(4) as pool, stored_at(network.url, store.variables):
            storing = pool.submit(use_storage, load, bucket, home, ending)
            killing = pool.submit(kill_in_turn, load, seconds, deaths)
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
        for name, values in used.items():
            print(json.dumps({"process": name} | level(values)))
        late = [one for one in rows if int(str(one["s_until_normal"])) > NORMAL_WITHIN_S]
        return 1 if any(lost) or twice or late else 0


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
