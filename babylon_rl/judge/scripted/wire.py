"""Parser of requests: episodes of our wire format, or trajectories of ART's RULER.

Ours is read strictly: a block begins and ends with the request's nonce, and a tag with another nonce is text. ART's tags have no nonce;
its trajectories are JSON on a line of their own, so only tags that stand alone on a line count.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.errors import UsageError

_OURS = re.compile(r'<episode nonce="([^"<>]+)" id="([^"<>]+)">')
_ART = re.compile(r'^<trajectory id="(\d+)">\n(.*?)\n</trajectory>$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block to judge, with the asker's text on it (``told``)."""

    id: str
    text: str
    told: str = ""


@dataclass(frozen=True)
class Asked:
    """Blocks in the order shown; ``id_field`` is the answer's name for the id.

    ``rest`` is the message without the blocks.
    """

    blocks: tuple[Block, ...]
    id_field: str
    rest: str


def read(messages: Sequence[Mapping[str, Any]]) -> Asked:
    """Read the blocks of the first user message that has any.

    Raises:
        UsageError: no message holds an episode or a trajectory.
    """
    system = "\n".join(text_of(message) for message in messages if message.get("role") in ("system", "developer"))
    for message in messages:
        if message.get("role") != "user":
            continue
        text = text_of(message)
        for pattern, id_field in ((_ours(text, system), "id"), (_ART, "trajectory_id")):
            found: dict[str, str] = {}
            for block in () if pattern is None else pattern.finditer(text):
                found[block[1]] = (found.get(block[1], "") + "\n" + block[2]).strip(
                    "\n"
                )  # repeated ids are joined: with the nonce one could add to any block
            if pattern and found:
                rest = pattern.sub("\n", text)
                told = _told(rest, found) if id_field == "id" else {}
                return Asked(tuple(Block(id, shown, told.get(id, "")) for id, shown in found.items()), id_field, rest)
    raise UsageError('No user message holds a block <episode nonce="..." id="..."> ... </episode nonce="...">.')


def text_of(message: Mapping[str, Any]) -> str:
    """Text of a message, whose content may be OpenAI's list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _ours(text: str, system: str) -> re.Pattern[str] | None:
    """Pattern of a block with the system message's nonce, else the first tag's."""
    nonces = dict.fromkeys(found[1] for found in _OURS.finditer(text))
    if not nonces:
        return None
    nonce = re.escape(next((nonce for nonce in nonces if nonce in system), next(iter(nonces))))
    return re.compile(rf'<episode nonce="{nonce}" id="([^"<>]+)">(.*?)</episode nonce="{nonce}">', re.DOTALL)


def _told(rest: str, ids: Mapping[str, str]) -> dict[str, str]:
    """Lines outside the blocks that name exactly one id, by that id."""
    lines: dict[str, str] = {}
    for line in rest.splitlines():
        named = [word for word in re.findall(r"[\w-]+", line) if word in ids]
        if len(named) == 1:
            lines[named[0]] = f"{lines.get(named[0], '')}{line}\n"
    return lines
