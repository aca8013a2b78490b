"""Writes the generated reference pages of the docs: settings, commands, assets and checks, tables, Python API.

Run by mkdocs (`make docs`); the pages exist in the built site alone. The tables are read from a database that is made and migrated for
this, so that the page shows what migrations give.
"""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import psycopg
from pydantic import SecretStr

API = {
    "Recording agents": "babylon_rl.recorder",
    "Inference": "babylon_rl.serving.inference",
    "DataFrames": "babylon_rl.frames",
    "Alerts": "babylon_rl.alerts",
    "Windows": "babylon_rl.windows",
    "Errors": "babylon_rl.errors",
    "Settings": "babylon_rl.settings",
    "Episodes": "babylon_rl.types",
    "Groups and scores": "babylon_rl.judge.consensus",
    "Trainers": "babylon_rl.training.backends",
    "Simulated markets": "babylon_rl.market.simulation.run",
}
COLUMNS = """
    SELECT t.table_name, obj_description(format('babylon_rl.%I', t.table_name)::regclass),
           c.column_name, c.data_type, col_description(format('babylon_rl.%I', t.table_name)::regclass, c.ordinal_position)
    FROM information_schema.tables t JOIN information_schema.columns c USING (table_schema, table_name)
    WHERE t.table_schema = 'babylon_rl' ORDER BY t.table_name, c.ordinal_position
"""


def settings_page() -> str:
    """Every environment variable by group, with its default and meaning."""
    from babylon_rl.settings import GROUPS

    page = io.StringIO("# Settings\n\nEnvironment variables; `.env` in the working directory is read too, and the environment wins.\n\n")
    page.seek(0, io.SEEK_END)
    for group in GROUPS:
        page.write(f"## {group.__name__}\n\n{group.__doc__}\n\n| variable | default | meaning |\n|---|---|---|\n")
        for name, field in group.model_fields.items():
            default = "" if field.default is None or isinstance(field.default, SecretStr) else f"`{field.default}`"
            page.write(f"| `{name.upper()}` | {default} | {cell(field.description)} |\n")
        page.write("\n")
    return page.getvalue()


def commands_page() -> str:
    """Every command with its arguments and options."""
    from babylon_rl.cli import COMMANDS, load

    return "# Commands\n\n" + "\n".join(line for name in sorted(COMMANDS) for line in _commands(load(name), f"babylon-rl {name}"))


def _commands(command: Any, path: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, child in sorted(command.commands.items()):
            yield from _commands(child, f"{path} {name}")
        return
    yield f"## `{path}`\n\n{command.help or ''}\n"
    parameters = [one for one in command.params if not getattr(one, "hidden", False)]
    if parameters:
        yield "| argument or option | default | meaning |\n|---|---|---|"
        for one in parameters:
            names = ", ".join(f"`{name}`" for name in one.opts) if one.param_type_name == "option" else f"`{one.name.upper()}`"
            shown = one.default if isinstance(one.default, (str, int, float)) and not isinstance(one.default, bool) else ""
            yield f"| {names} | {cell(str(shown))} | {cell(getattr(one, 'help', None))} |"
        yield ""


def assets_page() -> str:
    """Assets with their inputs and checks, then jobs, sensors and schedules."""
    from babylon_rl.definitions import defs

    lines = ["# Assets, checks and automation\n"]
    checks: dict[str, list[tuple[str, str]]] = {}
    for definition in defs.asset_checks or ():
        for spec in definition.check_specs:
            checks.setdefault(spec.asset_key.to_user_string(), []).append((spec.name, spec.description or ""))
    for spec in defs.resolve_all_asset_specs():
        key = spec.key.to_user_string()
        inputs = ", ".join(f"`{dep.asset_key.to_user_string()}`" for dep in spec.deps) or "none"
        lines.append(f"## {key}\n\n{spec.description or ''}\n\nInputs: {inputs}.\n")
        if key in checks:
            lines.append("| check | passes when |\n|---|---|")
            lines += [f"| `{name}` | {cell(words)} |" for name, words in sorted(checks[key])]
            lines.append("")
    for title, definitions in (("Sensors", defs.sensors), ("Schedules", defs.schedules)):
        lines.append(f"## {title}\n\n| name | does |\n|---|---|")
        lines += [f"| `{one.name}` | {cell(one.description)} |" for one in definitions or ()]
        lines.append("")
    return "\n".join(lines)


def batch_life_page() -> str:
    """States of a batch, its transitions, and the effect of each failure."""
    from babylon_rl.training.lifecycle import FAILURES, STATES, TRANSITIONS

    lines = ["# Life of a batch\n", "![States and transitions](../images/batch-lifecycle.svg)\n", "| state | meaning |\n|---|---|"]
    lines += [f"| `{state}` | {cell(meaning)} |" for state, meaning in STATES.items()]
    lines.append("\n## Transitions\n\n| transition | from | to | by | when |\n|---|---|---|---|---|")
    for move in TRANSITIONS:
        sources = ", ".join(f"`{state}`" for state in move.sources)
        lines.append(f"| {move.name} | {sources} | `{move.target}` | {move.actor} | {cell(move.when)} |")
    lines.append("\n## Failures\n\nThe first row that fits counts. While a job of a batch runs or was trained, the batch is paid.\n")
    lines.append("| failure | effect | while paid | goes on with |\n|---|---|---|---|")
    lines += [f"| {cell(rule.cause)} | {rule.effect} | {rule.when_paid} | {cell(rule.resumes)} |" for rule in FAILURES]
    return "\n".join(lines) + "\n"


def tables_page() -> str:
    """Tables and views of schema babylon_rl with their columns, as migrations make them."""
    from babylon_rl.store.database import Database
    from babylon_rl.store.embedded import use_server
    from babylon_rl.store.migrate import migrate

    lines = ["# Tables\n\nTables and views of schema `babylon_rl`.\n"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, use_server(Path(home)) as url:
        migrate(Database(url, url))
        with psycopg.connect(url) as connection:
            rows = connection.execute(COLUMNS).fetchall()
    last = None
    for table, comment, column, kind, words in rows:
        if table != last:
            lines.append(f"\n## {table}\n\n{comment or ''}\n\n| column | type | meaning |\n|---|---|---|")
        last = table
        lines.append(f"| `{column}` | {kind} | {cell(words)} |")
    return "\n".join(lines) + "\n"


def frames_page() -> str:
    """Columns of the DataFrames of babylon_rl.frames, with their dtypes."""
    from babylon_rl.frames import COLUMNS as FRAMES

    lines = ["# Frames\n\nDataFrames of `babylon_rl.frames`; how to use them: [in a notebook](../howto/notebook.md).\n"]
    for kind, columns in FRAMES.items():
        lines.append(f"\n## {kind}\n\n| column | dtype | meaning |\n|---|---|---|")
        lines += [f"| `{name}` | `{dtype}` | {cell(meaning)} |" for name, dtype, meaning in columns]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Docstrings of the modules that other code may import."""
    return "# Python API\n\n" + "\n".join(f"## {title}\n\n::: {module}\n" for title, module in API.items())


def cell(text: str | None) -> str:
    """``text`` as one cell of a Markdown table."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


PAGES = {
    "settings": settings_page, "commands": commands_page, "assets": assets_page, "batch-life": batch_life_page, "tables": tables_page,
    "frames": frames_page, "api": api_page,
}  # fmt: skip
for _name, _render in PAGES.items():
    with mkdocs_gen_files.open(f"reference/{_name}.md", "w") as _file:
        _file.write(_render())
