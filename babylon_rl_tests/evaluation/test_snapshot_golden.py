"""The bytes of two snapshots as they were on the platform that wrote them first: one that writes others fails here.

Whoever changes the market or the snapshot on purpose puts the new hashes here, and says so where the change is told.
"""

import hashlib

import pytest

from babylon_rl.evaluation.snapshot_file import benchmark_scenario, encode, from_scenario
from babylon_rl.market.simulation.config import preset

GOLDEN = {
    12345: (115_964, "f998fda62e4926e2079227b6b70aa86fcc40172cfd9c3977af86a3276f1adeb2"),
    0: (111_805, "e601cb282b07f1504a247911bef49d0ec03d643199d6607f7c171e83e3c26120"),
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_every_platform_writes_the_same_snapshot(seed: int) -> None:
    written = encode(from_scenario(benchmark_scenario(preset("quick", edition="held-out", seed=seed))))
    assert (len(written), hashlib.sha256(written).hexdigest()) == GOLDEN[seed]
