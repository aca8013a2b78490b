"""``python -m babylon_rl_tests.scripted_judge [--port 8020] ['{"noise": 0.1}']``: the judge on loopback, until it is interrupted."""

import argparse
import sys

from babylon_rl.errors import BabylonError
from babylon_rl.models.server import bind
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge, changes_of
from babylon_rl_tests.scripted_judge.server import serve


def main() -> None:
    """Serve a judge with these settings."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl_tests.scripted_judge")
    parser.add_argument("settings", nargs="?", default="", help="a JSON object; README.md names the settings")
    parser.add_argument("--port", type=int, default=8020, help="0 takes a free port")
    given = parser.parse_args()
    try:
        judge = ScriptedJudge().but(changes_of(given.settings))
        with bind("127.0.0.1", given.port) as bound:
            serve(judge, bound, lambda url: print(f"JUDGE_MODEL=openai/{judge.model} JUDGE_BASE_URL={url}", file=sys.stderr, flush=True))
    except BabylonError as refused:
        parser.error(str(refused))


main()
