"""Players named by ``benchmark run --model``.

A name is a strategy, base, a version of the registry, or NAME=URL of any endpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from babylon_rl.cli.output import say
from babylon_rl.errors import CheckpointError, UsageError
from babylon_rl.evaluation.benchmark import ModelSource, Say, game_trained, gate_rows, model_clients, sources_named, trained_windows
from babylon_rl.evaluation.gate import BASE, CANDIDATE
from babylon_rl.evaluation.play import Player, endpoint_player, scripted
from babylon_rl.evaluation.snapshots import Snapshot, require_unseen
from babylon_rl.evaluation.stakes import game_of_report
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game, game_named
from babylon_rl.market.simulation.strategies import PLAYERS
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.benchmarks import MarketResult, read_report
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import migrate, require_migrated
from babylon_rl.store.registry import Model, read_models
from babylon_rl.windows import utc_now


@contextmanager
def players_named(
    names: Sequence[str],
    settings: Settings,
    game: Game | None,
    *,
    temperature: float = 0.0,
    attempts: int = 6,
    serving: Serving | None = None,
) -> Iterator[list[Player]]:
    """Yield players in the order of ``names``; models are served until the block ends.

    The server for base and versions starts with the first request to one of them. Says which game is played, and which versions were
    trained in another.

    Args:
        game: what they play; by default what the first version among them was trained in, without any the first game.
        attempts: tries of a request to an endpoint of the user's.
        serving: gives the URL of a server for base and adapters; by default one on this machine.

    Raises:
        UsageError: a name is unknown, or a version cannot be played here.
    """
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    local = _local([name for name in names if name not in PLAYERS and _endpoint(name)[1] is None], settings)
    trained = {name: source.game for name, source in local.items() if name != BASE}
    game = game or next(iter(trained.values()), ONE_TICK_GAME)
    say(f"They play {game.name}.")
    for version, other in trained.items():
        if other != game:
            say(f"{version} was trained in {other.name} and plays {game.name} here.")
    model = partial(endpoint_player, game=game, temperature=temperature)
    with ExitStack() as stack:
        client_of = stack.enter_context(model_clients(settings, list(local.values()), serving or served_here))
        players = []
        for player in names:
            name, url = _endpoint(player)
            if player in PLAYERS:
                script = scripted(player, game.mandate)
                players.append(replace(script, game=script.game and game))
            elif url is not None:
                client = stack.enter_context(ChatClient(url, key, name, attempts=attempts))
                players.append(model(_always(client), name, f"{name}@{client.shown_url}"))
            else:
                players.append(model(partial(client_of, player), player, local[player].identity))
        yield players


def _endpoint(text: str) -> tuple[str, str | None]:
    """(NAME, URL) of ``NAME=URL``, (name, None) of any other text."""
    name, separator, url = text.partition("=")
    if not separator:
        return text, None
    if not name or not url.startswith(("http://", "https://")):
        raise UsageError(f"{text!r}: write NAME=URL with the model's name and a URL such as http://127.0.0.1:8000/v1.")
    return name, url


def _always(client: ChatClient) -> Callable[[], ChatClient]:
    # Bound here: a lambda in the loop would give every player the last client.
    return lambda: client


def _local(names: Sequence[str], settings: Settings) -> dict[str, ModelSource]:
    """Sources of base and versions, with the identity of their weights. The database is opened only if a version is named."""
    if not names:
        return {}
    versions = [name for name in names if name != BASE]
    models: dict[str, Model] = {}
    if versions:
        with open_database(settings, prepare=False) as database:
            migrate(database)
            with database.connect() as connection:
                models = {model.version: model for model in read_models(connection)}
    unknown = [name for name in versions if name not in models]
    if unknown:
        raise UsageError(
            f"There is no version or agent {unknown[0]!r}: `babylon-rl models` lists the versions; base is always there, and so are "
            f"{', '.join(PLAYERS)}; any endpoint is NAME=URL."
        )
    return {source.name: source for source in sources_named(names, models, settings)}


def models_played(
    connection: Connection,
    settings: Settings,
    names: Sequence[str],
    snapshots: Sequence[Snapshot],
    say: Say,
    role: str = CANDIDATE,
    serving: Serving = served_here,
    on_progress: Progress = no_progress,
) -> dict[str, tuple[str, list[MarketResult]]]:
    """Role and results of base and versions in the gate's markets, by name; what is stored is not played again."""
    models = {model.version: model for model in read_models(connection)}
    unknown = [name for name in names if name != BASE and name not in models]
    if unknown:
        raise UsageError(f"There is no version or strategy {unknown[0]!r}; `babylon-rl models` lists the versions; base is always there.")
    # Before anything is played: the markets must be unseen by all registered versions, and all weights be there.
    require_unseen(snapshots, trained_windows(models.values()))
    sources = sources_named(names, models, settings, role)
    results = gate_rows(connection, settings, sources, snapshots, say, clock=utc_now, serving=serving, on_progress=on_progress)
    return {source.name: (source.role, results[source.name]) for source in sources}


def game_of_players(names: Sequence[str], asked: str | None) -> Game:
    """The game of that name, else the one that the first version among ``names`` was trained in.

    That is in its report, so that it is known where the version itself is not; else in its checkpoint.
    """
    version = next((name for name in names if name not in (*PLAYERS, BASE)), None)
    if asked is not None or version is None:
        return game_named(asked or ONE_TICK_GAME.name)
    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        with database.connect() as connection:
            model = next((model for model in read_models(connection) if model.version == version), None)
            report = None if model is None or model.training_batch is None else read_report(connection, model.training_batch)
    reported = None if report is None or report.version != version else game_of_report(report)
    if reported is not None:
        return game_named(reported)
    try:
        return ONE_TICK_GAME if model is None else game_trained(model, settings)
    except CheckpointError:
        return ONE_TICK_GAME
