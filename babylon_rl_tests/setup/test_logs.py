"""Logs of servers and runs: JSON lines with their context, and no secret in them."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.logs import log_context, start_logs
from babylon_rl.settings import Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger("babylon_rl")
    before = (list(root.handlers), root.level, root.propagate)
    yield logging.getLogger("babylon_rl.training")
    root.handlers[:], root.level, root.propagate = before


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_a_json_line_with_its_context(settings: Settings, logger: logging.Logger) -> None:
    out = io.StringIO()
    start_logs(settings, out)
    with log_context(run="9f2c", batch="batch-1", window=None), log_context(version="v1.0.0"):
        logger.info("iteration %d ended", 3, extra={"loss": 0.5})
    logger.warning("outside")
    inside, outside = lines(out)
    assert inside.pop("timestamp").endswith("Z")
    assert inside == {
        "event": "iteration 3 ended", "level": "info", "logger": "babylon_rl.training", "run": "9f2c", "batch": "batch-1",
        "version": "v1.0.0", "loss": 0.5,
    }  # fmt: skip
    assert set(outside) == {"event", "level", "logger", "timestamp"} and outside["level"] == "warning"


def test_secrets_are_redacted_wherever_they_stand(settings: Settings, logger: logging.Logger) -> None:
    out = io.StringIO()
    start_logs(settings.model_copy(update={"wandb_api_key": SecretStr("sk-123456"), "cron_secret": SecretStr("abc")}), out)
    logger.error(
        "refused: sk-123456 at postgresql://ada:pw@db/x", extra={"api_key": "other", "sent": {"authorization": "x", "to": ["sk-123456"]}}
    )
    try:
        raise ValueError("sk-123456")
    except ValueError:
        logger.exception("failed with abc")
    first, second = lines(out)
    assert first["event"] == "refused: *** at postgresql://***@db/x"
    assert (first["api_key"], first["sent"]) == ("***", {"authorization": "***", "to": ["***"]})
    assert "sk-123456" not in out.getvalue() and "ValueError: ***" in second["exception"]
    assert second["event"] == "failed with abc"  # too short to be told from a word


def test_a_terminal_gets_readable_lines_and_starting_again_doubles_none(settings: Settings, logger: logging.Logger) -> None:
    out = Terminal()
    start_logs(settings, out)
    start_logs(settings, out)
    logger.info("ready")
    (line,) = out.getvalue().splitlines()
    assert "ready" in line and not line.startswith("{")
