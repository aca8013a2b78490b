"""Expected schema of the contract's tables, and differences of the actual one.

The source is migrations/0001 itself: it is run into pg_temp inside a transaction that is rolled back, and the catalog's description of
the result is compared with that of ``public``. Nothing is changed and nothing is written down twice.
"""

from dataclasses import dataclass

from babylon_rl.store.connection import Connection

# Tables into which this pipeline or its recorder inserts rows.
WRITTEN_TABLES = frozenset(
    {"User", "trajectories", "llm_call_logs", "training_batches", "market_outcomes", "trained_models", "reward_judgments"}
)

# Columns of tables and views; the last value is true for identity and generated columns.
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       a.attidentity <> '' OR a.attgenerated <> ''
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.relname, a.attnum
"""

# Valid unique indexes over plain columns, without a predicate.
_UNIQUE_KEYS = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attname)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
WHERE c.relnamespace = %s::regnamespace AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
GROUP BY c.relname, i.indexrelid
"""


@dataclass(frozen=True)
class CatalogColumn:
    """One column as described by the catalog."""

    type: str
    required: bool
    default: str | None
    fills_itself: bool = False


@dataclass(frozen=True)
class CatalogTable:
    """Columns by name, and the sets of columns that are unique together."""

    columns: dict[str, CatalogColumn]
    unique: frozenset[tuple[str, ...]]


def read_tables(connection: Connection, schema: str) -> dict[str, CatalogTable]:
    """Return the tables and views of ``schema`` by name."""
    columns: dict[str, dict[str, CatalogColumn]] = {}
    for table, name, kind, required, default, fills_itself in connection.execute(_COLUMNS, (schema,)):
        columns.setdefault(table, {})[name] = CatalogColumn(kind, required, default, fills_itself)
    unique: dict[str, set[tuple[str, ...]]] = {}
    for table, key in connection.execute(_UNIQUE_KEYS, (schema,)):
        unique.setdefault(table, set()).add(tuple(key))
    return {table: CatalogTable(table_columns, frozenset(unique.get(table, ()))) for table, table_columns in columns.items()}


def expected_tables(connection: Connection, contract_sql: str) -> dict[str, CatalogTable]:
    """Return the tables that ``contract_sql`` creates on an empty database, by name.

    Rolled back: leaves no trace.
    """
    with connection.transaction(force_rollback=True):
        # The contract's statements name no schema, so they create temporary tables here.
        connection.execute("SET LOCAL search_path = pg_temp")
        connection.execute(contract_sql)
        row = connection.execute("SELECT pg_my_temp_schema()::regnamespace::text").fetchone()
        assert row is not None
        return read_tables(connection, row[0])


def differences(expected: dict[str, CatalogTable], actual: dict[str, CatalogTable]) -> list[str]:
    """Return one line per relevant difference between existing tables and the contract."""
    lines = []
    for name in sorted(expected.keys() & actual.keys()):
        want, have = expected[name], actual[name]
        for column, expected_column in want.columns.items():
            lines += _column_differences(f'public."{name}"."{column}"', expected_column, have.columns.get(column))
        for key in sorted(want.unique - have.unique):
            listed = ", ".join(f'"{column}"' for column in key)
            lines.append(f'public."{name}" has no unique key on ({listed}), as the contract has.')
        # An additional column matters only if it would refuse our rows.
        if name in WRITTEN_TABLES:
            lines += [
                f'public."{name}"."{column}" is not in the contract and is required without a default: '
                "rows that are written here would be refused."
                for column, actual_column in have.columns.items()
                if column not in want.columns
                and actual_column.required
                and actual_column.default is None
                and not actual_column.fills_itself
            ]
    return lines


def _column_differences(place: str, want: CatalogColumn, have: CatalogColumn | None) -> list[str]:
    if have is None:
        return [f"{place} is missing; the contract has it as {want.type}."]
    lines = []
    if have.type != want.type:
        lines.append(f"{place} is {have.type}; the contract has {want.type}.")
    if have.required != want.required:
        lines.append(f"{place} is {_nullability(have)}; the contract has it {_nullability(want)}.")
    if want.default is not None and have.default is None and have.required:
        lines.append(f"{place} has no default; the contract has {want.default}.")
    return lines


def _nullability(column: CatalogColumn) -> str:
    return "not null" if column.required else "nullable"
