"""What pre-flight found, in words."""

from babylon_rl.training.preflight import preflight_lines

FOUND = {
    "sequences": 60, "episodes": 10, "groups": 2, "scriptedShare": 0.4, "logprobShare": 0.6, "trainableTokens": 733, "spread": None,
    "stalenessVersions": {}, "leftOut": {"leak": 2, "an empty response": 1},
    "groupsDropped": {"no spread of scores": 3, "leak": 1},
}  # fmt: skip


def test_what_was_left_out_has_its_unit():
    assert preflight_lines(FOUND, "v1.0.0")[1:] == [
        "  Left out: 2 sequences (leak)",
        "  Left out: 1 sequence (an empty response)",
        "  Left out: 3 groups (no spread of scores)",
        "  Left out: 1 group (leak)",
    ]
