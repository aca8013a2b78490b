"""Prints .env.example: every setting by group, with its meaning and default, from the groups of ``babylon_rl.settings``.

`make env-example` writes the file; a test checks that it is up to date.
"""

import textwrap
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from babylon_rl.settings import GROUPS

HEADER = """\
# Every setting of babylon_rl, all optional. Copy this file to .env, remove the # before what you change.
# The environment wins over .env. Made from babylon_rl/settings.py by `make env-example`; do not edit.
"""


def render() -> str:
    """The whole file, ending in a newline."""
    return HEADER + "".join(f"\n{_group(group)}" for group in GROUPS)


def _group(group: type[BaseModel]) -> str:
    return f"## {group.__doc__}\n" + "".join(f"\n{_setting(name, field)}" for name, field in group.model_fields.items())


def _setting(name: str, field: FieldInfo) -> str:
    comment = "\n".join(textwrap.wrap(field.description or "", 110, initial_indent="# ", subsequent_indent="# "))
    return f"{comment}\n#{name.upper()}={_default(field.default)}\n"


def _default(value: object) -> str:
    match value:
        case None | SecretStr():
            return ""
        case bool():
            return str(value).lower()
        case float() if value.is_integer():
            return str(int(value))
        case Path() | str() | int() | float():
            return str(value)
    raise TypeError(f"a default of type {type(value).__name__} has no text in .env.example")


if __name__ == "__main__":
    print(render(), end="")
