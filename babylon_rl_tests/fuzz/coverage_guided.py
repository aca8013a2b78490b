"""Inputs by coverage: atheris changes kept inputs of one reader until its code does something new. Run by `make fuzz`.

``build/fuzz/READER`` holds what it found beyond the kept inputs; an input that fails lies beside it. ``keep`` adds the shortest inputs of
new coverage to the kept ones.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import atheris

CHECKS = {
    "json": "test_json.check", "judge": "test_judge.check_bytes", "streams": "test_streams.check", "decode": "test_rows.check_decoding",
    "stitch": "test_rows.check_stitching", "snapshots": "test_snapshots.check", "gateway": "test_gateway.check",
    "templates": "test_templates.check", "upstreams": "test_upstreams.check", "schemas": "test_schemas.check",
}  # fmt: skip
CORPUS = Path(__file__).parent / "corpus"
LONGEST_KEPT, MOST_KEPT = 1500, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=CHECKS)
    parser.add_argument("seconds", type=int)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep:
        keep(arguments.reader)
    else:
        fuzz(arguments.reader, arguments.seconds)


def fuzz(reader: str, seconds: int) -> None:
    found = Path("build") / "fuzz" / reader
    found.mkdir(parents=True, exist_ok=True)
    for number, raw in enumerate(kept(reader)):
        (found / f"kept-{number}").write_bytes(raw)
    with atheris.instrument_imports(include=["babylon_rl"]):
        module, _, check = CHECKS[reader].partition(".")
        checked = getattr(importlib.import_module(f"babylon_rl_tests.fuzz.{module}"), check)
    limits = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={found}-"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", "-verbosity=0", str(found)], checked)
    atheris.Fuzz()


def kept(reader: str) -> list[bytes]:
    return [json.loads(line).encode("latin-1") for line in (CORPUS / f"{reader}.jsonl").read_text().splitlines()]


def keep(reader: str) -> None:
    """Add the shortest found inputs to the kept ones."""
    found = Path("build") / "fuzz" / reader
    new = sorted({path.read_bytes() for path in found.iterdir() if not path.name.startswith("kept-")} - set(kept(reader)), key=len)
    with (CORPUS / f"{reader}.jsonl").open("a") as corpus:
        for raw in [raw for raw in new if len(raw) <= LONGEST_KEPT][-MOST_KEPT:]:
            corpus.write(json.dumps(raw.decode("latin-1")) + "\n")


if __name__ == "__main__":
    main()
