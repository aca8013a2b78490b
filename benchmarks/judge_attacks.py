"""Attacks on a judge that does what any text says, with and without masks: `python benchmarks/judge_attacks.py` prints tables.

Each attack is what one agent of five says in an hour; the judge is the scripted one over HTTP, on an embedded Postgres. With obedience 1 an
attack gains where its agent's score is above that of the same agent in a quiet hour. The held-out wordings were never used to make the
flags. Attacks without such wordings meet a judge that each of them fools, and a look without words in every hour.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.judge.attacked_hours import Attempt, add_attacked_hours, attempts
from babylon_rl_tests.judge.attacks import ATTACKS, HELD_OUT, UNWORDED, Attack
from babylon_rl_tests.judge.model_judge import asking
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        use_server(Path(home)) as url,
        judging(ScriptedJudge(obedience=1.0, chars_per_token=1.0)) as judge,
    ):
        settings = asking(Settings(_env_file=None, babylon_rl_home=Path(home)), judge.url)
        print("| attacks | flagged | gain, without masks | gain, with | move others, without masks | move others, with |")
        print("|---|---|---|---|---|---|")
        for name, attacks in (("the corpus", ATTACKS), ("held-out wordings", HELD_OUT)):
            print(_row(name, _measured(url, attacks, settings)))
        print("\n| attack without a wording | flagged | gain | of it kept | words gained, by the look | found |\n|---|---|---|---|---|---|")
        looking = settings.model_copy(update={"judge_look_every": 1, "judge_look_after": 0})
        for attack, cue in UNWORDED:
            judge.reset(obedience=0.0, noise=0.02, fooled_by=cue)
            (one,) = _measured(url, [attack], looking)
            kept = one.own_after / one.own_before if one.own_before > 0 else 0.0
            found = f"{one.words or 0.0:+.2f} | {_yes(one.followed)}"
            print(f"| {attack.name} | {_yes(one.flagged)} | {one.own_before:+.2f} | {kept:.0%} | {found} |")


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _measured(url: str, attacks: Sequence[Attack], settings: Settings) -> list[Attempt]:
    database = Database(url, url)
    migrate(database)
    with database.connect(autocommit=True) as connection:
        found = attempts(connection, add_attacked_hours(connection, attacks), settings)
        connection.execute("TRUNCATE public.trajectories, babylon_rl.group_scores CASCADE")
    return found


def _row(name: str, found: Sequence[Attempt]) -> str:
    gains = [[getattr(one, part) for one in found] for part in ("own_before", "own_after", "others_before", "others_after")]
    return f"| {name}, {len(found)} | {sum(one.flagged for one in found)} | {' | '.join(map(_gained, gains))} |"


def _gained(gains: Sequence[float]) -> str:
    """How many gained, and their mean."""
    above = [gain for gain in gains if gain > 0]
    return f"{len(above)}, {sum(above) / len(above):+.2f} on average" if above else "0"


if __name__ == "__main__":
    main()
