"""The reader of snapshot files."""

from hypothesis import given

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file import decode, encode, to_scenario, validate
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable


def check(raw: bytes) -> None:
    """A file is refused with a sentence, or a snapshot that is written as it is and whose market can be made if nothing is wrong."""
    try:
        snapshot = decode(raw)
    except MarketError as refused:
        assert str(refused)
        return
    assert decode(encode(snapshot)) == snapshot
    errors, _ = validate(snapshot)
    assert all(errors)
    if not errors and snapshot.config is None:
        try:
            to_scenario(snapshot)
        except MarketError as refused:
            assert str(refused)


def test_every_kept_snapshot_is_read_or_refused_with_a_sentence() -> None:
    for raw in corpus("snapshots"):
        check(raw)


@repeatable(200)
@given(odd_bytes("snapshots"))
def test_any_bytes_are_a_snapshot_or_refused_with_a_sentence(raw: bytes) -> None:
    check(raw)
