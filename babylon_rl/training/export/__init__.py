"""Export of some hours in one format, published completely or not at all."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.training.export.destination import Destination, describing, destination
from babylon_rl.training.export.hours import SPLITS, ExportHour, Selection, Splits, read_hours
from babylon_rl.training.export.json_files import ArchiveWriter, JsonlWriter
from babylon_rl.training.export.parquet_files import HuggingFaceWriter, ParquetWriter

Writer = JsonlWriter | ParquetWriter | ArchiveWriter  # each takes hours one by one (``add``), and finishes its files (``close``)
_WRITERS: dict[str, Callable[[Destination], Writer]] = {
    "jsonl": JsonlWriter,
    "parquet": lambda place: ParquetWriter(place, lambda split, _: f"{split}.parquet"),
    "hf": HuggingFaceWriter,
    "archive": ArchiveWriter,
}
FORMATS = tuple(_WRITERS)


@dataclass
class SplitCounts:
    """Contents of a split; ``scored`` counts windows with scores."""

    windows: int = 0
    scored: int = 0
    episodes: int = 0
    records: int = 0


@dataclass
class ExportedRows:
    """Result of an export.

    ``files`` are displayable paths or URLs, empty when there was nothing to export. ``left_out`` counts LLM calls by reason, ``synthetic``
    trajectories without a recorded prompt, ``stale`` windows whose rows have changed since they were scored.
    """

    files: tuple[str, ...] = ()
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    synthetic: int = 0
    stale: int = 0

    @property
    def records(self) -> int:
        return sum(counts.records for counts in self.splits.values())

    def _add(self, hour: ExportHour) -> None:
        left_out = Counter(self.left_out) + hour.left_out
        self.left_out = dict(sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0])))
        self.synthetic += hour.synthetic
        if not hour.episodes:
            return
        self.stale += hour.stale
        counts = self.splits.setdefault(hour.split, SplitCounts())
        counts.windows += 1
        counts.scored += hour.scores is not None
        counts.episodes += len(hour.episodes)
        counts.records += hour.served.total()
        self.splits = {split: self.splits[split] for split in SPLITS if split in self.splits}


def export_windows(
    connection: Connection,
    windows: Sequence[str],
    target: str,
    form: str,
    settings: Settings,
    *,
    splits: Splits,
    selection: Selection,
    force: bool = False,
    tell: Progress = no_progress,
) -> ExportedRows:
    """Export complete hours, in order, to a directory or fsspec URL.

    Nothing is written, and what was there stays, when the hours hold nothing to export.

    Args:
        connection: not inside a transaction.
        form: one of FORMATS.
        force: write into a directory that holds other files, and replace those that are in the way.

    Raises:
        UsageError: the target is not empty and not an earlier export, or no file system knows it.
        ExportError: the target cannot be written.
    """
    done = ExportedRows()
    if not windows:
        return done
    with describing(target), destination(target, settings.home / "exports", force=force) as place:
        writer = _WRITERS[form](place)
        for number, hour in enumerate(read_hours(connection, windows, settings, splits, selection), start=1):
            writer.add(hour)
            done._add(hour)
            tell("hours exported", number, len(windows))
        # The archive also holds hours without a record: their groups, scores and outcomes.
        if not (done.splits if form == "archive" else done.records):
            return done
        writer.close()
        done.files = tuple(place.commit(_about(form, windows, splits, selection, settings)))
    return done


def _about(form: str, windows: Sequence[str], splits: Splits, selection: Selection, settings: Settings) -> dict[str, Any]:
    return {
        "format": form,
        "firstWindow": windows[0],
        "lastWindow": windows[-1],
        "windows": len(windows),
        "split": {"train": splits.train, "validation": splits.validation, "seed": splits.seed},
        "selection": {
            "all": selection.everything,
            "onlyScored": selection.only_scored,
            "onlyTrainable": selection.only_trainable,
            "minActionsPerTrajectory": settings.min_actions_per_trajectory,
            "minAgentsPerWindow": settings.min_agents_per_window,
            "trainPurposes": sorted(settings.purposes_g),
            "trainSynthetic": settings.train_synthetic,
        },
    }
