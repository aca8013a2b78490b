"""The newest calibration of each judge setting, for the judge's report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from babylon_rl.store.batches import own_transaction
from babylon_rl.store.connection import Connection

_TABLE = "SELECT to_regclass('babylon_rl.judge_agreements') IS NOT NULL"
_KEY = ("judge", "judgeVersion", "orders")
_INTERVALS = ("expected", "realized", "money", "overMoney")


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Rank correlations between one judge setting and market results within an hour.

    Each measure is (mean, low, high) over ``hours`` hours. ``expected``: scores with expected P&L. ``realized``: scores with realized P&L.
    ``money``: realized with expected P&L. ``over_money``: ``expected`` less ``money``. ``without_spread`` hours had one score for all and
    count as 0; ``not_judged`` hours are left out. ``rows`` has an object per agent: name, expected and its standard error, realized
    (dollars an hour), score, rank (means).
    """

    judge: str
    judge_version: str
    orders: int
    hours: int
    agents: int
    skill_markets: int
    seed: int
    without_spread: int
    not_judged: int
    expected: Sequence[float]
    realized: Sequence[float]
    money: Sequence[float]
    over_money: Sequence[float]
    rows: Sequence[Mapping[str, Any]]
    measured_at: datetime

    @property
    def document(self) -> dict[str, Any]:
        """This calibration as a JSON-ready dict."""
        plain = {_camel(field.name): getattr(self, field.name) for field in fields(self)}
        return {
            **plain,
            **{name: dict(zip(("mean", "low", "high"), plain[name], strict=True)) for name in _INTERVALS},
            "rows": [dict(row) for row in self.rows],
            "measuredAt": f"{self.measured_at.isoformat(timespec='seconds')}Z",
        }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_COLUMNS = tuple(_camel(field.name) for field in fields(JudgeAgreement))


def judge_agreements(connection: Connection) -> list[JudgeAgreement]:
    """Return the newest calibration of every judge setting, best agreement first.

    Empty if the table does not exist yet.
    """
    if connection.execute(_TABLE).fetchone() != (True,):
        return []
    statement = sql.SQL('SELECT {} FROM babylon_rl.judge_agreements ORDER BY "expected"[1] DESC, "judge", "judgeVersion", "orders"')
    return [JudgeAgreement(*row) for row in connection.execute(statement.format(_names()))]


def write_judge_agreement(connection: Connection, found: JudgeAgreement) -> None:
    """Store a calibration, replacing the former one of its setting."""
    # The column list follows the fields of the class, so the statement is composed from it.
    changed = [sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in _COLUMNS if name not in _KEY]
    statement = sql.SQL("INSERT INTO babylon_rl.judge_agreements ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}").format(
        _names(), sql.SQL(", ").join([sql.Placeholder()] * len(_COLUMNS)), _names(_KEY), sql.SQL(", ").join(changed)
    )
    values = {_camel(field.name): getattr(found, field.name) for field in fields(found)}
    values |= {name: list(values[name]) for name in _INTERVALS} | {"rows": Jsonb([dict(row) for row in found.rows])}
    with own_transaction(connection):
        connection.execute(statement, list(values.values()))


def _names(columns: Sequence[str] = _COLUMNS) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
