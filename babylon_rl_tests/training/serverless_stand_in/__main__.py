"""The stand-in as a process: prints its address, then serves until its standard input closes."""

import argparse
import sys
from pathlib import Path

from babylon_rl_tests.training.serverless_stand_in.chat import Chat
from babylon_rl_tests.training.serverless_stand_in.http import standing_in
from babylon_rl_tests.training.serverless_stand_in.service import Service


def main() -> None:
    """Serve with ``--base DIR`` as the base model that answers chats."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", type=Path, help="a model directory: its tokenizer answers chats and bounds token ids")
    parser.add_argument("--job-s", type=float, default=0.0, help="how long a job takes")
    parser.add_argument("--lag-s", type=float, default=0.0, help="how long a new checkpoint stays out of lists")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    tokenizer = None
    if given.base is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(given.base)
    service = Service(len(tokenizer) if tokenizer is not None else 1_000_000, given.job_s, given.lag_s)
    with standing_in(service, None if tokenizer is None else Chat(tokenizer), given.port) as served:
        print(served.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
