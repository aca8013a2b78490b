"""The kept inputs, and new ones made of their pieces."""

import json
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

_CORPUS = Path(__file__).parent / "corpus"


def corpus(reader: str) -> list[bytes]:
    """The kept inputs of a reader."""
    return [json.loads(line).encode("latin-1") for line in (_CORPUS / f"{reader}.jsonl").read_text().splitlines()]


def odd_bytes(reader: str) -> st.SearchStrategy[bytes]:
    """Bytes of any kind, kept inputs, and pieces of them in another order."""
    whole = st.sampled_from(corpus(reader))
    piece = st.builds(lambda raw, low, high: raw[low : low + high], whole, st.integers(0, 200), st.integers(0, 60))
    return whole | st.lists(piece | st.binary(max_size=4), max_size=8).map(b"".join) | st.binary(max_size=60)


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    """Bytes as a network may bring them: cut at any places."""
    places = sorted({cut % (len(raw) + 1) for cut in cuts})
    return [raw[low:high] for low, high in zip([0, *places], [*places, len(raw)], strict=True) if low < high]


def halves(text: str, cuts: list[int]) -> list[str]:
    """The pieces of a text as JSON texts, cut between any two units of UTF-16: in the middle of a character, too."""
    units = text.encode("utf-16-be")
    pairs = [f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2)]
    places = sorted({cut % (len(pairs) + 1) for cut in cuts})
    return [f'"{"".join(pairs[low:high])}"' for low, high in pairwise([0, *places, len(pairs)])]


CUTS = st.lists(st.integers(0, 10_000), max_size=12)
# All characters that a text may hold in JSON, those outside of the first plane often: they are pairs of escapes.
_CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from("😀𐀀") | st.sampled_from('\ufffd\u2028\x00"\\\n\r{}[]')
TEXTS = st.text(_CHARACTERS, max_size=30)
