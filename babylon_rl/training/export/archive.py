"""Archive of whole windows: a directory per window with trajectories, group, scores and metadata.

``trajectories.jsonl`` has a line per record; ``groups.jsonl`` one line with every exported episode; ``scores.json`` the form of
``babylon-rl scores`` without the judge's words; ``metadata.json`` the hour's contents and market outcomes.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from babylon_rl.training.export.files import Destination
from babylon_rl.training.export.hours import Hour
from babylon_rl.training.export.records import encode
from babylon_rl.types import MESSAGE_SOURCES, Episode, count_reasons

TRAJECTORIES, GROUPS, SCORES, METADATA = "trajectories.jsonl", "groups.jsonl", "scores.json", "metadata.json"
FILES = (TRAJECTORIES, GROUPS, SCORES, METADATA)


def archive_names(windows: Iterable[str]) -> Iterator[str]:
    """List the possible files of an archive of some windows."""
    return (f"{window}/{name}" for window in windows for name in FILES)


class ArchiveWriter:
    """Writes a directory per window that holds an episode."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def add(self, hour: Hour) -> None:
        """Write the window's four files; metadata comes last."""
        if not hour.episodes:
            return
        contents: dict[str, Callable[[Hour], Iterable[Any]]] = {
            TRAJECTORIES: Hour.records,
            GROUPS: lambda hour: [group_document(hour)],
            SCORES: lambda hour: [scores_document(hour)],
            METADATA: lambda hour: [metadata_document(hour)],
        }
        for file, documents in contents.items():
            name = f"{hour.window}/{file}"
            _write_lines(self._destination.new(name), documents(hour))
            self._destination.finished(name)

    def close(self) -> None:
        """Do nothing: every file is finished already."""

    def abandon(self) -> None:
        """Do nothing: no file is open between hours."""


def group_document(hour: Hour) -> dict[str, Any]:
    """Describe the window's group: its episodes with scores and number of records."""
    episodes = []
    for episode in hour.episodes:
        score = hour.score_of(episode.agent_id)
        judged: dict[str, float | None] = {"score": None, "advantage": None, "rank": None}
        if score is not None:
            judged = {"score": score.score, "advantage": score.advantage, "rank": score.rank}
        episodes.append(_episode_document(episode) | judged | {"records": hour.served[episode.agent_id]})
    return {
        "groupId": hour.window,
        "window": hour.window,
        "split": hour.split,
        "judge": None if hour.scores is None else hour.scores.judge,
        "ready": hour.reading.ready,
        "episodes": episodes,
    }


def scores_document(hour: Hour) -> dict[str, Any]:
    """Describe the window's scores without the judge's words, which may quote hidden answers."""
    if hour.scores is None:
        return {"window": hour.window, "judge": None, "groupSize": 0, "mean": None, "spread": None, "disagreement": None, "scores": []}
    document = hour.scores.document()
    rows = [{name: value for name, value in score.items() if name != "reasoning"} for score in document["scores"]]
    return document | {"scores": rows}


def metadata_document(hour: Hour) -> dict[str, Any]:
    """Describe the hour's contents, omitted data and market outcomes."""
    reading = hour.reading
    return {
        "window": hour.window,
        "split": hour.split,
        "rows": reading.rows,
        "eligible": reading.eligible,
        "rejected": count_reasons(reading.rejections),
        "agents": len(reading.episodes),
        "usableEpisodes": len(reading.usable_episodes),
        "ready": reading.ready,
        "messageSources": {source: sum(episode.message_sources[source] for episode in reading.episodes) for source in MESSAGE_SOURCES},
        "trajectoryCount": sum(len(episode.trajectory_ids) for episode in hour.episodes),
        "records": hour.served.total(),
        "leftOut": dict(sorted(hour.left_out.items())),
        "scoresStale": hour.stale,
        "outcomes": hour.outcomes.document(),
    }


def _episode_document(episode: Episode) -> dict[str, Any]:
    return {
        "agentId": episode.agent_id,
        "trajectoryIds": list(episode.trajectory_ids),
        "steps": episode.steps,
        "startPnl": episode.start_pnl,
        "endPnl": episode.end_pnl,
        "windowPnl": episode.window_pnl,
        "wins": episode.wins,
        "losses": episode.losses,
        "winRate": episode.win_rate,
        "trades": episode.trades,
        "posts": episode.posts,
        "actions": episode.actions,
        "messageSources": episode.message_sources,
        "usable": episode.usable,
    }


def _write_lines(path: Path, documents: Iterable[Any]) -> None:
    with path.open("wb") as file:
        for document in documents:
            file.write(encode(document) + b"\n")
