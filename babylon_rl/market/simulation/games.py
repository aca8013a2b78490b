"""Games that agents play and policies train on, each with its prompt, its mandate and the sizes of its answers.

This is the only place that says which prompt, schema and stake belong together. An hour records the name of its game; a version is compared
in the game whose prompt and schema its training calls had. Left out: games that users define.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, Mandate

TRADER_V1 = "trader-v1"
TRADER_V2 = "trader-v2"
VERSIONS = (TRADER_V1, TRADER_V2)  # of prompts


@dataclass(frozen=True)
class Game:
    """One game. ``names_size``: an answer names its stake, as one of ``SIZES_USD``; else the stake is fixed."""

    name: str
    prompt_version: str
    mandate: Mandate
    names_size: bool = False

    @property
    def grammar(self) -> str:
        """Name of the schemas of its answers; with the prompt version it names the game."""
        return "position" if self.mandate == FREE else "trade-size" if self.names_size else "trade"

    @property
    def max_tokens(self) -> int:
        """Most tokens of an answer."""
        return 64 if self.names_size else 48


ONE_TICK_GAME = Game("one-tick", TRADER_V1, ONE_TICK)
POSTS = Game("posts", TRADER_V2, ONE_TICK)
AMOUNTS = Game("amounts", TRADER_V2, ONE_TICK, names_size=True)
POSITIONS = Game("positions", TRADER_V2, FREE, names_size=True)
GAMES = {game.name: game for game in (ONE_TICK_GAME, POSTS, AMOUNTS, POSITIONS)}


def game_named(name: str) -> Game:
    """The game of that name. Raises MarketError: there is none."""
    if name not in GAMES:
        raise MarketError(f"There is no game {name!r}; there are {', '.join(GAMES)}.")
    return GAMES[name]


def game_asked(mandate: Mandate, prompt: str | None = None) -> Game:
    """The first game of a mandate and a prompt version; by default the first of that mandate.

    Raises:
        MarketError: there is no such prompt, or it has no words for the mandate.
    """
    if prompt is not None and prompt not in VERSIONS:
        raise MarketError(f"There is no prompt {prompt!r}; there are {', '.join(VERSIONS)}.")
    for game in GAMES.values():
        if game.mandate == mandate and prompt in (None, game.prompt_version):
            return game
    raise MarketError(f"{prompt} asks for orders that last one tick; positions that last need {TRADER_V2}.")


def game_of(prompts: Sequence[str], grammars: Sequence[str]) -> Game | None:
    """The game of recorded calls, from the names of their prompts and schemas, the most frequent first; None where no game has them.

    Without a name anything fits, and of several games the first is meant.
    """
    fitting = [
        game for game in GAMES.values() if (not prompts or game.prompt_version in prompts) and (not grammars or game.grammar in grammars)
    ]
    places = {
        game.name: sum(names.index(name) for names, name in ((prompts, game.prompt_version), (grammars, game.grammar)) if names)
        for game in fitting
    }
    return min(fitting, key=lambda game: places[game.name], default=None)
