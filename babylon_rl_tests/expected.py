"""The sample databases' answers, as shipped with them."""

import gzip
import json
from pathlib import Path
from typing import Any

SAMPLES = {"sample_database": "babylon_realtime", "early_sample_database": "babylon_realtime_early"}


def expected(fixture: str) -> dict[str, Any]:
    """What a correct reading of the sample behind ``fixture`` gives."""
    packed = (Path(__file__).parent / "data" / f"{SAMPLES[fixture]}.expected.json.gz").read_bytes()
    answers: dict[str, Any] = json.loads(gzip.decompress(packed))
    return answers
