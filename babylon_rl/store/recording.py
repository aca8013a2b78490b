"""Rows written by recorders and the simulated game into the game's tables, in sets."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from babylon_rl.errors import SchemaMismatch
from babylon_rl.store.connection import Connection


class HourSource(msgspec.Struct, frozen=True, rename="camel"):
    """Facts that an hour's market and its players' accounts follow from, beside the seed.

    ``start_prices`` are by company, ``seats`` the players with the dollars that each began with, ``game`` the name of what they played.
    """

    edition: str
    agents: int
    tick_seconds: int
    question_numbers: tuple[int, ...]
    start_prices: dict[str, float]
    seats: tuple[tuple[str, float], ...]
    game: str = "one-tick"


def copy_rows(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """COPY rows into a table of ``public``. All rows have the keys of the first."""
    if rows:
        columns = list(rows[0])
        connection.copy_rows(f'public."{table}"', columns, ([row[column] for column in columns] for row in rows))


def stored_rows(connection: Connection, ids: Sequence[str]) -> frozenset[str]:
    """Return those of ``ids`` that exist in trajectories (column id, not trajectoryId)."""
    return frozenset(connection.column("SELECT id FROM public.trajectories WHERE id = ANY(%s)", (list(ids),)))


def require_recording_tables(connection: Connection) -> None:
    """Check that the tables of the recorder exist. Raises SchemaMismatch: one is missing."""
    absent = [name for name in ("trajectories", "llm_call_logs") if not connection.has_table(f"public.{name}")]
    if absent:
        raise SchemaMismatch(f"The table {' and '.join(absent)} is not in this database: run `babylon-rl migrate`, or check DATABASE_URL.")


def add_agents(connection: Connection, agents: Sequence[tuple[str, str]], now: datetime) -> None:
    """Create the missing game users (id, name) of simulated agents."""
    # Simulated agents start with 10000 dollars. An existing user keeps its account.
    new = {"isAgent": True, "isTest": True, "virtualBalance": 10000, "createdAt": now, "updatedAt": now}
    rows = [{"id": agent, "username": agent, "displayName": name, **new} for agent, name in agents]
    connection.insert('public."User"', rows, "ON CONFLICT (id) DO NOTHING")


SIMULATION_LOCK = "babylon_rl.simulated_hours"  # one run of ``spawn-agents`` at a time
_SIMULATED = "A simulated company"  # the description by which our companies are known


def add_organizations(connection: Connection, companies: Sequence[tuple[str, str, float]], now: datetime) -> None:
    """Create missing companies (id, name, initial price in dollars)."""
    new = {"description": _SIMULATED, "type": "company", "canBeInvolved": True, "createdAt": now, "updatedAt": now}
    rows = [{"id": company, "name": name, "initialPrice": price, "currentPrice": price, **new} for company, name, price in companies]
    connection.insert('public."Organization"', rows, "ON CONFLICT (id) DO NOTHING")


def last_prices(connection: Connection, before: datetime) -> dict[str, float]:
    """Return each company's last recorded price before a moment, by name."""
    rows = connection.execute(
        """
        SELECT organization.name, newest.price
        FROM public."Organization" AS organization
        CROSS JOIN LATERAL (
            SELECT price FROM public."StockPrice" WHERE "organizationId" = organization.id AND "timestamp" < %(before)s
            ORDER BY "timestamp" DESC, id DESC LIMIT 1
        ) AS newest
        """,
        {"before": before},
    )
    return {name: float(price) for name, price in rows}


def set_current_prices(connection: Connection, prices: Mapping[str, float], now: datetime) -> None:
    connection.execute(
        """
        UPDATE public."Organization" AS organization SET "currentPrice" = latest.price, "updatedAt" = %(now)s
        FROM unnest(%(ids)s::text[], %(prices)s::float8[]) AS latest(id, price) WHERE organization.id = latest.id
        """,
        {"ids": list(prices), "prices": list(prices.values()), "now": now},
    )


def first_agent_number(connection: Connection) -> int:
    """Return the lowest n from which every ``test-agent-<n>`` is ours or free. A game may have its own test agents with such names."""
    # The number begins behind ``test-agent-``, at the twelfth character.
    number = connection.value(
        """
        SELECT coalesce(max(substring(id from 12)::bigint), 0) + 1 FROM public."User"
        WHERE id ~ '^test-agent-[0-9]{1,9}$' AND NOT (username IS NOT DISTINCT FROM id AND "displayName" LIKE '% ' || id)
        """
    )
    return int(number or 1)


def market_id(connection: Connection, question_number: int) -> str:
    """Return the id of a question, which is also that of its market."""
    return str(connection.row('SELECT id FROM public."Question" WHERE "questionNumber" = %s', (question_number,))[0])


def next_question_number(connection: Connection) -> int:
    return int(connection.value('SELECT coalesce(max("questionNumber"), 0) + 1 FROM public."Question"') or 1)


def newest_simulated_hour(connection: Connection) -> str | None:
    return connection.value('SELECT max("window") FROM babylon_rl.simulated_hours')


def simulated_hours(connection: Connection, seed: int) -> list[str]:
    """Return the windows that ``spawn-agents`` wrote with ``seed``, in order."""
    return connection.column('SELECT "window" FROM babylon_rl.simulated_hours WHERE seed = %s ORDER BY "window"', (seed,))


def simulated_seeds(connection: Connection) -> set[int]:
    return set(connection.column("SELECT DISTINCT seed FROM babylon_rl.simulated_hours"))


def has_simulated_hour(connection: Connection, window: str) -> bool:
    return connection.value('SELECT 1 FROM babylon_rl.simulated_hours WHERE "window" = %s', (window,)) is not None


def are_simulated(connection: Connection, windows: Collection[str]) -> bool:
    """Whether all of these hours, one at least, are of a simulated market."""
    simulated = 'SELECT count(*) FROM babylon_rl.simulated_hours WHERE "ownMarket" AND "window" = ANY(%s)'
    return bool(windows) and connection.value(simulated, (list(windows),)) == len(set(windows))


def is_simulated_game(connection: Connection) -> bool:
    """Return True if the simulation wrote every company in the database. An empty database, or one with benchmarks only, counts too."""
    simulated = connection.value(
        """
        SELECT NOT EXISTS (SELECT 1 FROM public."Organization" WHERE description IS DISTINCT FROM %s)
           AND (EXISTS (SELECT 1 FROM babylon_rl.simulated_hours WHERE "ownMarket")
                OR NOT EXISTS (SELECT 1 FROM public."StockPrice") AND NOT EXISTS (SELECT 1 FROM public."Question")
                   AND NOT EXISTS (SELECT 1 FROM public."WorldEvent")
                   AND NOT EXISTS (SELECT 1 FROM public.trajectories WHERE "agentId" NOT LIKE 'benchmark-%%' OR NOT "isEvaluation"))
        """,
        [_SIMULATED],
    )
    return bool(simulated)


def edition_of(connection: Connection, seed: int) -> str | None:
    """Return the edition of the markets that ``spawn-agents`` wrote with ``seed``, or None if it wrote none."""
    return connection.value(
        """
        SELECT coalesce("source" ->> 'edition', 'training') FROM babylon_rl.simulated_hours
        WHERE seed = %s AND "ownMarket" ORDER BY "window" DESC LIMIT 1
        """,
        (seed,),
    )


def mark_simulated_hour(connection: Connection, window: str, seed: int, own_market: bool, source: HourSource, now: datetime) -> None:
    """Record that ``spawn-agents`` wrote this hour. ``own_market``: it wrote the market too."""
    row = {"window": window, "seed": seed, "ownMarket": own_market, "source": source, "createdAt": now}
    connection.upsert("babylon_rl.simulated_hours", [row], but={"ownMarket": 'held."ownMarket"'})


def read_sources(connection: Connection, windows: Sequence[str]) -> dict[str, tuple[int, bool, HourSource | None]]:
    """Return (seed, own market, source) of the simulated ones of ``windows``. The source is None for hours from before it was kept."""
    found = connection.execute(
        'SELECT "window", seed, "ownMarket", "source"::text FROM babylon_rl.simulated_hours WHERE "window" = ANY(%s)', (list(windows),)
    )
    decode = msgspec.json.Decoder(HourSource).decode
    return {window: (seed, own, None if source is None else decode(source)) for window, seed, own, source in found}


def read_accounts(connection: Connection, agents: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return (balance, lifetime P&L) in dollars of the agents that exist."""
    rows = connection.execute('SELECT id, "virtualBalance", "lifetimePnL" FROM public."User" WHERE id = ANY(%s)', (list(agents),))
    return {agent: (float(balance), float(pnl)) for agent, balance, pnl in rows}


def save_accounts(connection: Connection, accounts: Mapping[str, tuple[float, float]], now: datetime) -> None:
    """Write (balance, lifetime P&L) in dollars to the agents' rows."""
    connection.execute(
        """
        UPDATE public."User" AS agent SET "virtualBalance" = account.balance, "lifetimePnL" = account.pnl, "updatedAt" = %(now)s
        FROM unnest(%(ids)s::text[], %(balances)s::numeric[], %(pnls)s::numeric[]) AS account(id, balance, pnl) WHERE agent.id = account.id
        """,
        {"ids": list(accounts), "balances": [b for b, _ in accounts.values()], "pnls": [p for _, p in accounts.values()], "now": now},
    )
