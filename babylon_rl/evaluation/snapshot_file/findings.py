"""What is wrong with a snapshot, a sentence per kind of problem however often it occurs."""


class Findings:
    """Errors make a snapshot unusable, warnings say what to know of it; each kind is told by its first case and its number."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, str], tuple[str, int]] = {}

    def error(self, kind: str, sentence: str) -> None:
        """Something that makes the snapshot unusable; without a full stop."""
        self._add(True, kind, sentence)

    def warning(self, kind: str, sentence: str) -> None:
        """Something to know."""
        self._add(False, kind, sentence)

    def sentences(self) -> tuple[list[str], list[str]]:
        """Errors and warnings in the order in which they were first met."""
        told: tuple[list[str], list[str]] = ([], [])
        for (is_error, _), (sentence, count) in self._found.items():
            more = f" ({count} cases like it in all)" if count > 1 else ""
            told[0 if is_error else 1].append(f"{sentence}{more}.")
        return told

    def _add(self, is_error: bool, kind: str, sentence: str) -> None:
        first, count = self._found.get((is_error, kind), (sentence, 0))
        self._found[is_error, kind] = (first, count + 1)
