"""Command ``benchmark errors``: how a player answers each kind of headline, and the texts that it misreads."""

from typing import Annotated, Any

import typer

from babylon_rl.cli.benchmark_players import game_of_players
from babylon_rl.cli.benchmark_run import gate_results
from babylon_rl.cli.options import GameOfVersionOption
from babylon_rl.cli.output import Column, JsonOption, Table, emit
from babylon_rl.errors import UsageError
from babylon_rl.evaluation.ceiling import errors
from babylon_rl.evaluation.play import gate_job, scripted
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.snapshots import GATE_ID, benchmark_snapshots
from babylon_rl.market.simulation.games import Game
from babylon_rl.market.simulation.prompt_reader import CEILING_OF_GAME
from babylon_rl.market.simulation.strategies import PLAYERS
from babylon_rl.settings import load_settings


def _share(title: str, key: str, meaning: str = "") -> Column:
    return Column(title, lambda row: f"{row[key]:.0%}", meaning=meaning)


_ANSWERS = [
    _share("follows", "follows", "an order as the headline says"),
    _share("other market", "otherMarket", "an order in a market that the headline does not name"),
    _share("against", "against", "an order the other way"),
    _share("HOLD", "hold"),
]
# Of the document of ``Errors``.
KINDS = [
    Column("headline", "name"), Column("decisions", "decisions"), *_ANSWERS,
    _share("trades", "trades", "an order where no direction is said"),
    _share("unusable", "unusable", "an answer or an order that was not carried out"),
    Column("$ a decision", lambda row: f"{row['usd']:+.1f}", meaning="expected dollars, without the luck of prices"),
    Column("following", lambda row: f"{row['followingUsd']:+.1f}", meaning="the same of orders as the headlines say"),
]  # fmt: skip
TEXTS = [
    Column("text", "name"), Column("says", lambda row: {1: "good, YES", -1: "bad, NO", 0: "nothing"}[row["direction"]]),
    Column("decisions", "decisions"), *_ANSWERS,
    Column("lost, $", lambda row: f"{row['lostUsd']:.0f}", meaning="expected dollars below following, over all of its decisions"),
]  # fmt: skip


def show_errors(
    player: Annotated[str, typer.Argument(metavar="PLAYER", help="A version, base, or an agent (conservative, best-by-prompt...).")],
    texts: Annotated[int, typer.Option(min=0, help="Most misread texts to show.")] = 10,
    game: GameOfVersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show answers by kind of headline, and misread texts. In the gate's markets, of stored decisions; no model is asked."""
    played = game_of_players([player], game)
    if played.name not in CEILING_OF_GAME:
        raise UsageError(
            f"Errors are of orders for one tick, and {played.name} is played with positions that last: choose {', '.join(CEILING_OF_GAME)}."
        )
    results = _played(player, played) if player in PLAYERS else gate_results([player], played)[0]
    highest = max((int(result.benchmark_id.removeprefix(GATE_ID)) for result in results), default=-1)
    kinds, by_text = errors(results, {snapshot.id: snapshot for snapshot in benchmark_snapshots(highest + 1, played)})
    misread = [one for one in by_text if one.lost_usd > 0.0][:texts]
    document: dict[str, Any] = {
        "player": player, "markets": len(results), "kinds": [one.document for one in kinds], "texts": [one.document for one in misread],
    }  # fmt: skip
    tables: list[Table | str] = [
        Table(KINDS, document["kinds"], f"{player}, {len(results)} markets: answers by kind of headline"),
        "",
        Table(TEXTS, document["texts"], "Texts that cost most, below following them"),
    ]
    emit(document, tables, as_json)


def _played(agent: str, game: Game) -> list[Result]:
    player, snapshots = scripted(agent, game.mandate), benchmark_snapshots(load_settings().benchmark_markets, game)
    return [gate_job(player, snapshot).result(lambda done, of: None) for snapshot in snapshots]
