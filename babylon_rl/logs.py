"""Structured logs of servers and of Dagster's processes.

structlog formats what the standard library's loggers take: JSON lines, or readable ones on a terminal. Secrets are redacted by their
field's name, in addresses, and wherever the value of a secret setting appears. Without ``start_logs`` records go where the program's own
logging sends them.
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

from pydantic import BaseModel, SecretStr

REDACTED = "***"
ROOT = "babylon_rl"
_SECRET_NAME = re.compile(r"key$|secret|token$|password|authorization|webhook", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(\w+://)[^/\s@]+@")
_LEAST_SECRET = 6  # characters; a shorter value would hide ordinary words


class Redactor:
    """Replaces secrets in an event: secret-named fields, users in addresses, known texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first, as one secret may be a part of another.
        self._secrets = sorted({secret for secret in secrets if len(secret) >= _LEAST_SECRET}, key=len, reverse=True)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {name: REDACTED if _SECRET_NAME.search(name) else self.clean(value) for name, value in event.items()}

    def clean(self, value: Any) -> Any:
        """Return a value with every text in it redacted."""
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, REDACTED)
            return _USER_IN_ADDRESS.sub(rf"\1{REDACTED}@", value)
        if isinstance(value, Mapping):
            return {name: REDACTED if _SECRET_NAME.search(str(name)) else self.clean(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.clean(part) for part in value)
        return value


def secrets_of(settings: BaseModel) -> list[str]:
    """Values of the secret settings."""
    return [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]


def start_logs(settings: BaseModel, stream: TextIO | None = None) -> None:
    """Send this process's records to ``stream`` (standard error): JSON unless it is a terminal."""
    import structlog

    out = stream or sys.stderr
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
    ]
    shown = structlog.dev.ConsoleRenderer() if out.isatty() else structlog.processors.JSONRenderer(default=str)
    # Redacted at the very end, when the event holds all that is printed, the text of an exception included.
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, Redactor(secrets_of(settings)), shown]
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()], processors=last))
    logger = logging.getLogger(ROOT)
    # A second call replaces the first: each record is printed once.
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def log_context(**fields: str | None) -> Iterator[None]:
    """Add fields (run, window, batch, version, ...) to every record; None leaves one out."""
    from structlog.contextvars import bound_contextvars

    with bound_contextvars(**{name: value for name, value in fields.items() if value is not None}):
        yield
