"""The wire format of a judge's request, read as strictly as docs/reference/judge-prompt.md writes it; anything else is an error."""

import html
import re
from dataclasses import dataclass

_REQUEST = re.compile(
    r"(?P<number>\d+) episodes of the hour (?P<window>\d{4}-\d\d-\d\dT\d\d:00)\. The nonce of this request is (?P<nonce>[0-9a-f]{16,})\.\n"
)
_PARTS = re.compile(r"The hour has \d+ parts by time: 1 from \d\d:\d\d(?:, \d+ from \d\d:\d\d)* to \d\d:\d\d\.\n")
_OWN_PARTS = re.compile(r"By part ([0-9a-f]{6,}) made these dollars in these steps: \d+: .*\.\n")
_LAST = re.compile(r"(?:Score|Mark the \d+ parts of) the (\d+) episodes: ([0-9a-f]{6,}(?:, [0-9a-f]{6,})*)\. Answer with JSON only\.")
_PNL = re.compile(r"From the hour's start to its end ([0-9a-f]{6,}) made (\S+) dollars in (\d+) steps\.\n")


@dataclass(frozen=True)
class Read:
    """A request in its parts: blocks by id in the order shown, with their text unescaped, and P&L by id."""

    nonce: str
    context: str
    common: str
    blocks: dict[str, str]
    pnl: dict[str, str]


class Reader:
    """Reads a request from its beginning to its end, part by part."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        head = self.expect(_REQUEST)
        self.number, self.nonce = int(head["number"]), head["nonce"]

    def expect(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The pattern, here."""
        found = pattern.match(self.text, self.at)
        assert found is not None, f"not {pattern.pattern!r}: {self.text[self.at : self.at + 200]!r}"
        self.at = found.end()
        return found

    def block(self, tag: str, attributes: str) -> tuple[str, str]:
        """The next block, up to the first end tag of its name with the nonce; no other markup may stand in it."""
        start = self.expect(re.compile(rf'<{tag} nonce="{self.nonce}"{attributes}>\n'))
        end = self.text.index(f'\n</{tag} nonce="{self.nonce}">\n', self.at - 1)
        inside = self.text[self.at : max(end, self.at)]
        self.at = end + len(f'\n</{tag} nonce="{self.nonce}">\n')
        assert not re.search(r"[<>]|&(?!(?:amp|lt|gt);)|[＜＞﹤﹥]", inside), f"markup inside {tag}: {inside!r}"
        return (start[1] if start.groups() else ""), html.unescape(inside)


def read_request(text: str) -> Read:
    """The parts of a user message; raises AssertionError where it is anything but the format."""
    reader = Reader(text)
    if text.startswith("The hour has ", reader.at):
        reader.expect(_PARTS)
    context = common = ""
    if text.startswith("What the hour came to:\n", reader.at):
        reader.expect(re.compile("What the hour came to:\n"))
        _, context = reader.block("context", "")
    if text.startswith("What several of the agents were shown, by number:\n", reader.at):
        reader.expect(re.compile("What several of the agents were shown, by number:\n"))
        _, common = reader.block("common", "")
    blocks: dict[str, str] = {}
    pnl: dict[str, str] = {}
    while _LAST.match(text, reader.at) is None:
        told = reader.expect(_PNL) if _PNL.match(text, reader.at) else None
        by_part = []
        while _OWN_PARTS.match(text, reader.at):
            by_part.append(reader.expect(_OWN_PARTS)[1])
        identity, inside = reader.block("episode", ' id="([0-9a-f]{6,})"')
        assert identity not in blocks and (told is None or told[1] == identity) and set(by_part) <= {identity}
        blocks[identity] = inside
        if told is not None:
            pnl[identity] = told[2]
    last = reader.expect(_LAST)
    assert reader.at == len(text) and last[2].split(", ") == list(blocks) and int(last[1]) == reader.number == len(blocks)
    return Read(reader.nonce, context, common, blocks, pnl)
