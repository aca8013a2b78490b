"""Builders of what a judge is shown, without a database."""

from collections.abc import Mapping

from babylon_rl.judge.prompt.injection import Flag
from babylon_rl.judge.prompt.request import RenderedEpisode, RenderedGroup
from babylon_rl.versions import content_version

WINDOW = "2025-11-15T10:00"
SECRET = b"a secret of thirty-two bytes ...."


def make_group(
    texts: Mapping[str, str],
    *,
    context: tuple[str, ...] = ("Everything rose.",),
    common: str = "",
    most: int = 16,
    flags: tuple[Flag, ...] = (),
) -> RenderedGroup:
    """The group of agents whose episodes read like this, each with a P&L of its place in dollars."""
    episodes = tuple(
        RenderedEpisode(text, len(text) // 4, agent_id=agent, flags=flags, pnl=float(place), steps=6)
        for place, (agent, text) in enumerate(sorted(texts.items()))
    )
    version = content_version([WINDOW, context, common, [[agent, text.encode("utf-8", "replace").hex()] for agent, text in texts.items()]])
    return RenderedGroup(WINDOW, context, common, episodes, version, most)
