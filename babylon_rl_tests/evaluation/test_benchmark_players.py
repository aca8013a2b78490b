"""Who can be named: the roster, base and versions by their weights, anybody's endpoint."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.cli.benchmark_players import players_named
from babylon_rl.errors import UsageError
from babylon_rl.evaluation.play import Player, benchmark_results
from babylon_rl.market.simulation.games import GAMES, ONE_TICK_GAME, POSITIONS, POSTS, Game
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.conftest import MakeVersion
from babylon_rl_tests.evaluation.endpoint import always_buy, endpoint, hold
from babylon_rl_tests.evaluation.runs import small_markets


@pytest.fixture
def here(settings: Settings, database: Database) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(database.url)})


def test_base_and_versions_are_served_when_something_is_missing_and_known_by_their_weights(
    here: Settings, make_version: MakeVersion, tmp_path: Path
) -> None:
    make_version("v1.0.0")
    with endpoint(base=hold, **{"v1.0.0": always_buy}) as served:
        for starts in (1, 1):  # the second time everything is known, and no server starts
            with players_named(["base", "v1.0.0", "nothing"], here, ONE_TICK_GAME, serving=served.serving) as players:
                runs = benchmark_results(players, small_markets(1), tmp_path / "r")
            assert [result.agent_id for result in runs.results] == ["base", "v1.0.0", "nothing"] and served.starts == starts
        assert [result.role for result in runs.results] == ["model", "model", "strategy"] and served.asked == {"base": 12, "v1.0.0": 12}
    assert len({player.identity for player in players}) == 3


def test_a_game_and_a_temperature_are_part_of_who_plays(here: Settings) -> None:
    def identity(game: Game = ONE_TICK_GAME, temperature: float = 0.0) -> str:
        with players_named(["m=http://127.0.0.1:9/v1"], here, game, temperature=temperature) as (one,):
            assert isinstance(one, Player) and one.name == "m"
            return one.identity

    found = [*map(identity, GAMES.values()), identity(temperature=1.0)]
    assert len(set(found)) == 5 and identity() == found[0]


def test_a_version_plays_the_game_that_it_was_trained_in_unless_another_is_asked(
    here: Settings, make_version: MakeVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_version("v1.0.0", game=POSITIONS)
    make_version("v1.0.1", game=POSTS)

    def said(names: list[str], game: Game | None) -> list[str]:
        with players_named(names, here, game) as players:
            assert {player.mandate for player in players} == {(game or POSTS).mandate if "v1.0.1" in names else "one-tick"}
        return capsys.readouterr().err.splitlines()

    assert said(["nothing", "v1.0.1", "v1.0.0"], None) == ["They play posts.", "v1.0.0 was trained in positions and plays posts here."]
    assert said(["v1.0.0", "v1.0.1"], POSITIONS) == ["They play positions.", "v1.0.1 was trained in posts and plays positions here."]
    assert said(["nothing", "base"], None) == ["They play one-tick."]


def test_nobody_of_that_name_is_a_sentence(here: Settings) -> None:
    nobody = players_named(["v9.9.9"], here, POSITIONS)
    with pytest.raises(UsageError, match=r"no version or agent 'v9.9.9': .* base is always there"), nobody:
        pass
