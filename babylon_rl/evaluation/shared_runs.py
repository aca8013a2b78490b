"""The gate's runs at MODEL_STORAGE_URL: uploaded after a comparison, fetched for whoever looks at them.

    <url>/benchmarks/<name>/<result's id>.decisions.jsonl.gz, <result's id>.json

An id names weights and market: no file is ever replaced by another run's, neither when a market is played again with other weights nor by
another database that uses the storage. The files are for looking at. Nothing waits for them: rows are committed before, and what cannot be
uploaded stays on the machine that played, until the model is compared there again.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from babylon_rl.errors import BabylonError, MarketError, ModelUnavailable, UsageError
from babylon_rl.evaluation.play import gate_key
from babylon_rl.evaluation.result_building import result_id
from babylon_rl.evaluation.results import PARTIAL, SUFFIX, Result, read_result
from babylon_rl.evaluation.run_files import DECISIONS, DIRECTORY, decisions_beside, runs_directory
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import newest_markets
from babylon_rl.store.connection import Connection

_LOG = logging.getLogger(__name__)


def share_runs(settings: Settings, names: Iterable[str]) -> None:
    """Upload the runs of models that are here and not at MODEL_STORAGE_URL; a failure is logged."""
    url = settings.model_storage_url
    if url is None:
        return
    for name in names:
        directory = runs_directory(settings.home, name)
        try:
            with describing_failures(url, lambda reason, number: BabylonError(reason)):
                _upload(Location(url), directory, f"{DIRECTORY}/{name}")
        except Exception as failed:  # of whatever driver: the comparison has ended well
            reason = str(failed).rstrip(".") if isinstance(failed, BabylonError) else type(failed).__name__
            _LOG.warning("Decisions in %s stay on this machine: %s cannot be written to: %s.", directory, shown_url(url), reason)
            return  # a storage that is silent would hold up each of the names


def _upload(location: Location, directory: Path, folder: str) -> None:
    there = location.sizes(folder)
    for path, result in _results(directory):
        # Decisions first: a result that is there has its decisions.
        for source, suffix in ((decisions_beside(path), DECISIONS), (path, SUFFIX)):
            name = f"{result.id}{suffix}"
            # By its size, too: in a directory an upload may have been cut off.
            if there.get(name) != source.stat().st_size:
                location.put(source, f"{folder}/{name}")


def _results(directory: Path) -> Iterator[tuple[Path, Result]]:
    """The finished runs in a directory that can be read."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        if not path.name.endswith(PARTIAL):
            try:
                yield path, read_result(path)
            except MarketError:
                continue


@dataclass(frozen=True)
class FoundRuns:
    """Result files, one a market, and the number of markets without any."""

    files: list[Path]
    missing: int


def find_runs(connection: Connection, settings: Settings, name: str) -> FoundRuns:
    """The runs behind a model's rows; what is not here is fetched from MODEL_STORAGE_URL into a cache.

    Raises:
        ModelUnavailable: the storage does not answer, or there is no room here.
        UsageError: nobody of that name has played in the gate's markets.
    """
    wanted = {result_id(gate_key(identity, market)) for identity, market in newest_markets(connection, name)}
    if not wanted:
        raise UsageError(f"{name!r} has not played in the gate's markets: name a version that was compared, or base.")
    own, cache = runs_directory(settings.home, name), settings.home / "cache" / "decisions" / name
    found = _known(own, wanted) | _known(cache, wanted)
    url = settings.model_storage_url
    if url is not None and wanted - found.keys():

        def failed(reason: str, number: int | None) -> ModelUnavailable:
            return ModelUnavailable(
                f"The decisions at {shown_url(url)}/{DIRECTORY}/{name} cannot be fetched to {cache}: {reason}. Mend that, then try again."
            )

        with describing_failures(url, failed):
            _fetch(Location(url), f"{DIRECTORY}/{name}", wanted - found.keys(), cache)
        found |= _known(cache, wanted)
    return FoundRuns(sorted(found.values()), len(wanted - found.keys()))


def _known(directory: Path, wanted: Iterable[str]) -> dict[str, Path]:
    return {result.id: path for path, result in _results(directory) if result.id in wanted}


def _fetch(location: Location, folder: str, ids: Iterable[str], cache: Path) -> None:
    """Bring runs here whose files are there, decisions first."""
    there = location.sizes(folder)
    cache.mkdir(parents=True, exist_ok=True)
    for one in sorted(ids):
        files = [f"{one}{suffix}" for suffix in (DECISIONS, SUFFIX)]
        if there.keys() >= set(files):
            for name in files:
                location.get(f"{folder}/{name}", cache / name)
