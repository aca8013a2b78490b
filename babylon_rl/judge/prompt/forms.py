"""Forms of a rendered group that measure the gain from its texts: sentences masked, words left out.

A form is made of the rendered texts, so that it differs from the group in nothing else. Its version is its own, and so are its ids,
places and cached answers.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from babylon_rl.judge.prompt.injection import MASK, Flag, find_flags, masked, masked_once
from babylon_rl.judge.prompt.request import RenderedEpisode, RenderedGroup, derived
from babylon_rl.versions import content_version

MOST_LOOKED_AT = 6  # agents of such an hour whose words are left out in turn
# How a line of an episode begins: the step and its state, then what the agent saw, said or did.
_LINE = re.compile(r"(?:(?P<step>\d+)\.)? ?(?:\([^)]*\) )?(?P<part>saw|said|did) (?:\(why\) )?")
_ACTION = re.compile(r"\w{1,40}")
_DEED = re.compile(r"(?<!\S)[{\[]*[\w.]{1,24}=[{\[]*[-+\w.%]{1,24}[}\],]*(?=\s+(?:[{\[]*[\w.]{1,24}=|->)|\s*$)|FAILED")


@dataclass(frozen=True)
class MaskedGroup:
    """A group with its flagged sentences masked, the lines that hold some as they were shown, and a placebo.

    In ``placebo`` as many unflagged sentences of each agent are masked as flagged ones of the agent that has most: what scores differ by
    there is the effect of any mask. ``suspects`` are the agents that were shown or said something that is masked.
    """

    group: RenderedGroup
    passages: tuple[str, ...]
    placebo: RenderedGroup
    suspects: tuple[str, ...]


def with_flags(group: RenderedGroup) -> RenderedGroup:
    """The group with the flags of its texts: of each episode, and of what its agents share."""
    episodes = tuple(replace(episode, flags=tuple(dict.fromkeys(_flags(episode.text)))) for episode in group.episodes)
    shared = [("the hour's context", text) for text in group.context] + [
        ("a line shown to several", text) for text in group.common.splitlines()
    ]
    return replace(group, episodes=episodes, context_flags=tuple(flag for where, text in shared for flag in find_flags(text, where)))


def _flags(text: str) -> Iterator[Flag]:
    step = "1"
    for line in text.splitlines():
        if head := _LINE.match(line):
            step = head["step"] or step
            yield from find_flags(line[head.end() :], f"step {step} {head['part']}")


def masked_form(group: RenderedGroup) -> MaskedGroup | None:
    """The group with its flagged sentences masked; None where it has none."""
    if not group.flags and not group.context_flags:
        return None
    context, common = tuple(map(masked, group.context)), "\n".join(map(masked, group.common.splitlines()))
    form = _form(replace(group, context=context, common=common), "masked", lambda one: _mapped(one.text, ("saw", "said", "did"), masked))
    names = [*(episode.agent_id for episode in group.episodes), "context", "shown to several"]
    passages = [
        (name, shown.strip())
        for name, before, after in zip(names, _texts(group), _texts(form), strict=True)
        for shown, hidden in zip(before.splitlines(), after.splitlines(), strict=True)
        if shown != hidden
    ]
    if not passages:
        return None
    found = {name for name, _ in passages}
    suspects = tuple(name for name in names[:-2] if name in found or not found.isdisjoint(names[-2:]))
    most = max([1, *(episode.text.count(MASK) for episode in form.episodes)])
    placebo = _form(group, "placebo", lambda one: _masked_at_most(one.text, most))
    return MaskedGroup(form, tuple(f"{name}: {shown}" for name, shown in passages), placebo, suspects)


def looked_at(group: RenderedGroup, secret: bytes, every: int) -> list[str]:
    """The agents whose words are left out in turn, of one hour in ``every``, drawn by a keyed hash; empty for the others."""
    if int.from_bytes(derived(secret, group, "look")[:8], "big") % every or len(group.episodes) < 3:
        return []
    return sorted((episode.agent_id for episode in group.episodes), key=lambda agent: derived(secret, group, "look", agent))[
        :MOST_LOOKED_AT
    ]


def without_words(group: RenderedGroup, agent: str) -> RenderedGroup:
    """The group without the words, posts and messages of ``agent``; its actions stay, with short parameters."""

    def silent(one: RenderedEpisode) -> str:
        return _mapped(_mapped(one.text, ("said",), lambda _: ""), ("did",), _deed) if one.agent_id == agent else one.text

    return _form(group, f"without the words of {agent}", silent)


def _deed(line: str) -> str:
    action = _ACTION.match(line)
    return " ".join([action[0] if action else "ACT", *_DEED.findall(line)])


def _texts(group: RenderedGroup) -> list[str]:
    return [*(episode.text for episode in group.episodes), "\n".join(group.context), group.common]


def _form(group: RenderedGroup, name: str, text_of: Callable[[RenderedEpisode], str]) -> RenderedGroup:
    """The group with other texts of its episodes."""
    episodes = tuple(replace(episode, text=text_of(episode)) for episode in group.episodes)
    return replace(group, episodes=episodes, input_version=content_version([group.input_version, name]))


def _masked_at_most(text: str, left: int) -> str:
    def once(line: str) -> str:
        nonlocal left
        hidden = masked_once(line) if left else line
        left -= hidden != line
        return hidden

    return _mapped(text, ("said",), once)


def _mapped(text: str, parts: tuple[str, ...], change: Callable[[str], str]) -> str:
    """An episode's text with the lines of some parts changed, behind their heads; lines that become empty are left out."""

    def line_of(line: str) -> str:
        head = _LINE.match(line)
        if head is None or head["part"] not in parts:
            return line
        changed = change(line[head.end() :])
        return line[: head.end()] + changed if changed else line[: head.start("part")].rstrip()

    return "\n".join(filter(None, map(line_of, text.splitlines())))
