"""A real HTTP receiver of alerts, which can refuse, and answer too late."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from babylon_rl_tests.http_stand_in import Handler, served


@dataclass
class Receiver:
    """``bodies`` are those taken; ``status`` is the answer, ``delay_s`` passes before the receiver reads."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    status: int = 204
    delay_s: float = 0.0


@contextmanager
def alert_receiver() -> Iterator[Receiver]:
    """Serve a receiver until the block ends."""
    receiver = Receiver()

    class Answers(Handler):
        def do_POST(self) -> None:
            receiver.asked += 1
            if receiver.delay_s:
                time.sleep(receiver.delay_s)
                self.close_connection = True
                return
            body = json.loads(self.body())
            if receiver.status < 300:
                receiver.bodies.append(body)
            self.answer(status=receiver.status)

    with served(Answers) as address:
        receiver.url = f"{address}/services/secret-token"
        yield receiver
