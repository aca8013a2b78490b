"""Least privilege, by the log of a server: each grant of least-privilege.sql was needed by some statement, and no statement was refused.

The server writes the permissions that it checks for each statement (``debug_print_rewritten``): table, kind and columns.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

import psycopg
import pytest

from babylon_rl.alerts import send_alerts
from babylon_rl.automation.cleanup import clean_up
from babylon_rl.automation.launch import observe_hours, run_batch, run_hours
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.serving import releases
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl.store.releases import ReleaseAuthor
from babylon_rl.training.export import FORMATS, export_windows
from babylon_rl.training.export.hours import Selection, Splits
from babylon_rl_tests.conftest import _load
from babylon_rl_tests.judge.model_judge import asking
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.serving.gateways import MESSAGES, add_version, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import model_stand_in
from babylon_rl_tests.store.pipeline import train_once
from babylon_rl_tests.store.test_least_privilege import Roles, record, speak_json
from babylon_rl_tests.training.sample import NOW

HOUR = "2025-10-29T14:00"
KINDS = {1: "INSERT", 2: "SELECT", 4: "UPDATE", 8: "DELETE"}
SYSTEM_COLUMNS = 7  # the first column of a table is this number plus one
CHECKED = re.compile(
    r"\{RTEPERMISSIONINFO :relid (\d+) :inh \w+ :requiredPerms (\d+) :checkAsUser 0 "
    r":selectedCols \(b([ \d]*)\) :insertedCols \(b([ \d]*)\) :updatedCols \(b([ \d]*)\)\}"
)
COPIED = re.compile(r'COPY\s+(?:public\.)?"?(\w+)"? \(([^)]*)\) FROM STDIN')
# A recorder looks for a row whose answer was lost: recorder/test_outages.py.
ONLY_AFTER_FAULTS = {"recorder": [("SELECT", "trajectories", "id")]}
Use = tuple[str, str, str]  # kind, table, column; the column is empty where a right on any column is enough


@dataclass
class Logged:
    """A server's log, by role."""

    log: Path
    tables: Mapping[int, str]
    columns: Mapping[tuple[int, int], str]
    used: dict[str, set[Use]] = field(default_factory=lambda: defaultdict(set))
    refused: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Collect what was checked for each role."""
        message = list[str]()
        with self.log.open(errors="replace") as lines:
            # A message goes on in lines that begin with a tab.
            for line in chain(lines, ["role= end"]):
                if not line.startswith("\t"):
                    self._message(" ".join(message))
                    message = []
                message.append(line.strip())

    def _message(self, message: str) -> None:
        role = message.partition(" ")[0].removeprefix("role=")
        if "permission denied" in message:
            self.refused.append(message)
        for relation, kinds, *columns in CHECKED.findall(message):
            self._add(role, int(relation), int(kinds), columns)
        if (copied := COPIED.search(message)) is not None:
            self.used[role] |= {("INSERT", copied[1], name.strip(' "')) for name in copied[2].split(",")}

    def _add(self, role: str, relation: int, kinds: int, columns: list[str]) -> None:
        if (table := self.tables.get(relation)) is None:
            return
        selected, inserted, updated = columns
        for kind, places in ((2, selected), (1, inserted), (4, updated), (8, "")):
            if kinds & kind:
                names = [self.columns.get((relation, int(place) - SYSTEM_COLUMNS), "") for place in places.split()]
                self.used[role] |= {(KINDS[kind], table, name) for name in names or [""]}


def grants(database: Database, role: str) -> set[Use]:
    """What the script gave to a role on tables of the game; the column is empty where all are meant."""
    with psycopg.connect(database.url) as connection:
        rows = connection.execute(
            """
            SELECT g.privilege_type, c.relname, '' FROM pg_class c, aclexplode(c.relacl) g
            WHERE c.relnamespace = 'public'::regnamespace AND g.grantee = to_regrole(quote_ident(%(role)s))
            UNION ALL
            SELECT g.privilege_type, c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, aclexplode(a.attacl) g
            WHERE c.relnamespace = 'public'::regnamespace AND g.grantee = to_regrole(quote_ident(%(role)s))
            """,
            {"role": role},
        ).fetchall()
    return set(rows)


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[Roles]:
    """The recorded game on a server of its own, which logs what it checks, and the roles of the script."""
    with use_server(tmp_path / "server") as url:
        _load(url, "babylon_realtime")
        with psycopg.connect(url, autocommit=True) as connection:
            for setting in ("log_statement = 'all'", "log_line_prefix = 'role=%u '", "fsync = off"):
                connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")
        yield Roles(Database(url, url))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_every_grant_is_used_by_a_run_of_everything_and_none_is_missing(roles: Roles, settings: Settings, tmp_path: Path) -> None:
    names = {"role": "pipeline", "recorder": "recorder", "spawner": "spawner", "gateway": "gateway"}
    roles.run(role=names["role"])
    migrate(roles.as_("role"))
    roles.run(**names)
    with roles.database.connect(autocommit=True) as owner:
        for name in names.values():
            owner.execute(f"ALTER ROLE {name} SET debug_print_rewritten = on")
            owner.execute(f"ALTER ROLE {name} SET debug_pretty_print = off")
    run_pipeline(roles, settings, tmp_path)
    run_others(roles, settings, tmp_path)
    with roles.database.connect() as owner:
        tables = dict(owner.execute("SELECT oid::int, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall())
        columns = {
            (relation, place): name for relation, place, name in owner.execute("SELECT attrelid::int, attnum, attname FROM pg_attribute")
        }
    logged = Logged(Cluster(tmp_path / "server").log, tables, columns)
    logged.read()
    assert logged.refused == []
    unused = {
        name: sorted(given for given in grants(roles.database, name) if not was_used(given, logged.used[name])) for name in names.values()
    }
    assert {name: left for name, left in unused.items() if left} == ONLY_AFTER_FAULTS


def was_used(given: Use, used: set[Use]) -> bool:
    kind, table, column = given
    return any(kind == one[0] and table == one[1] and column in ("", one[2]) for one in used)


# As a person or a timer has them run; a command that finds something to report exits with 1.
COMMANDS = (
    *("ab start trial --versions base,v9.0.0 --shares 10,10", "ab status trial", "ab stop trial"),
    *("models resolve --agent a", "models agents"),
    *("judge quarantine", "judge report", "judge retry --all", "score --window 2025-10-29T16:00", "rejected", "alerts", "status", "ready"),
    *("train --mode list", "benchmark leaderboard", "verify-system", "cleanup --dry-run", "keys list"),
)
KEYS = ("keys create client --agent a*", "keys revoke client")


def run_pipeline(roles: Roles, settings: Settings, home: Path) -> None:
    """Hours, scores by rule and by a model, a training, releases, an A/B test, alerts, an export, cleanup, and the commands of a day."""
    database = roles.as_("role")
    database.prepare_dagster_schema()
    observe_hours(database, settings, now=lambda: NOW)
    run_hours(database, settings, [HOUR, "2025-10-29T15:00"], now=lambda: NOW)
    with judging() as judge, database.connect(autocommit=True) as connection:
        score_windows(connection, [HOUR], asking(settings, judge.url), NOW)
    train_once(database, settings)
    add_version(roles.database, "v9.0.0", "ready")  # the dry trainer's has no weights that could be served
    author = ReleaseAuthor("test", "least privilege", NOW + timedelta(hours=1))
    with database.connect(autocommit=True) as connection:
        deployed = releases.deploy(connection, "v9.0.0", settings, author, strategy="immediate")
        send_alerts(connection, settings, NOW + timedelta(hours=2))
        ended = releases.rollback(connection, settings, author)
        assert deployed.rollout_id == ended.rollout_id
        releases.deploy(connection, "v9.0.0", settings, author, strategy="immediate")  # for the gateway's call
        exported = export_windows(
            connection, [HOUR], str(settings.home / "exports" / "all"), FORMATS[0], settings, splits=Splits(), selection=Selection()
        )
        assert exported.files
    for command in COMMANDS:
        done = speak_json(database, home, *command.split())
        assert done.returncode in (0, 1), f"{command}: {done.stderr}"
    run_batch(database, settings, "batch-v9.0.0", ["benchmark_report", "released_model", "ab_test_report"], now=lambda: NOW)
    with database.connect(autocommit=True) as connection:
        assert len(list(clean_up(connection, settings, NOW + timedelta(days=400)))) > 3


def run_others(roles: Roles, settings: Settings, tmp_path: Path) -> None:
    """An agent that records, a simulated agent on the game, and a call through the gateway."""
    with roles.database.connect() as owner:
        (agent,) = owner.execute('SELECT min("agentId") FROM trajectories').fetchone() or ("",)
    with TrajectoryRecorder.connect(roles.as_("recorder").url, settings=settings) as recorder:
        record(recorder, agent)
        recorder.flush()
    with roles.as_("spawner").connect() as connection:
        spawn(connection, SpawnRequest(3, 0, 1, 0, 60, HOUR), datetime(2025, 10, 31), None)
    with model_stand_in() as upstream:
        changed = settings.model_copy(update={"local_endpoint": upstream.url})
        with running_gateway(changed, roles.as_("gateway"), writes=True) as gateway:
            gateway.client().chat.completions.create(model="babylon-agent", messages=MESSAGES)
            wait_for(lambda: calls(roles.database), "the call to be written")
    for command in KEYS:  # from then on a gateway asks for a key
        assert speak_json(roles.as_("role"), tmp_path, *command.split()).returncode == 0


def calls(database: Database) -> int:
    with database.connect() as owner:
        return int(owner.value("SELECT count(*) FROM babylon_rl.gateway_calls"))
