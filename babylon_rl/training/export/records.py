"""Records of an export: one per trainable LLM call, with its episode's result.

Every format holds the same records, and every value in them fits every format: numbers are finite, integers have 64 bits, text is UTF-8.
The judge's words are left out, as they may quote answers that were hidden from the policy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args

import msgspec

from babylon_rl.chats import log_probability
from babylon_rl.types import Episode, EpisodeScore, GroupScores, ServedSequence

_INT64 = 2**63


class TokenLogprob(msgspec.Struct, frozen=True, rename="camel"):
    """One token as the serving policy sampled it; ``token_id`` is in that policy's vocabulary."""

    token: str | None
    token_id: int | None
    logprob: float


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One training sequence: its columns with their meaning."""

    split: Annotated[str, "`train`, `validation` or `test`; the same for all records of a window"]
    window: Annotated[str, "the hour in UTC, `YYYY-MM-DDTHH:00`; records of one window are one group"]
    agent_id: Annotated[str, "whose episode it is; window and agentId together name an episode"]
    trajectory_id: Annotated[str, "the recorded row that the call is from"]
    call_id: Annotated[str, "the call within it"]
    step: Annotated[int | None, "the step's recorded number"]
    messages: Annotated[list[dict[str, str]], "what the policy was served: `role` and `content` of each message, in order"]
    response: Annotated[str, "what the policy answered"]
    response_format: Annotated[dict[str, Any] | None, "the schema that the answer was constrained to, as JSON text; null without one"]
    logprobs: Annotated[
        list[TokenLogprob] | None, "`token`, `tokenId` and `logprob` of each token of the response; null where not recorded whole"
    ]
    purpose: Annotated[str, "the call's purpose, such as `action`; empty where none was recorded"]
    source: Annotated[str, "where the messages are from: `embedded`, `llm_call_logs` or `synthetic`"]
    model: Annotated[str, "the model that answered; empty where none was recorded"]
    model_version: Annotated[str | None, "its version, where recorded"]
    scripted: Annotated[bool, "true when one of this project's scripted strategies composed the prompt and the answer"]
    score: Annotated[float | None, "the episode's score, 0 to 1; null where it has none"]
    advantage: Annotated[float | None, "(score - group mean) / population standard deviation; 0 in a group without spread"]
    rank: Annotated[int | None, "the episode's rank in its group, 1 is best, equal scores share the better one"]
    judge: Annotated[str | None, "who scored: a model's name, or `heuristic` for the formula"]
    group_size: Annotated[int | None, "episodes in the scored group"]
    window_pnl: Annotated[float | None, "what the episode earned in the window, in dollars"]
    win_rate: Annotated[float | None, "share of its trajectories that won among those that won or lost; null when none did"]
    usable: Annotated[bool, "false for an episode with too few steps for a group (only with `--all`)"]
    weight: Annotated[float, "1 / the records of the episode, so that an episode weighs the same whatever its length"]
    trajectory_ids: Annotated[list[str], "all rows of the episode, in order"]
    finish_reason: Annotated[str | None, "why the answer ended, such as `stop` or `length` (cut off); null where it was not recorded"]


class RecordColumn(NamedTuple):
    """Field of a record: name, kind (its type in the formats) and meaning."""

    name: str
    kind: str
    meaning: str


_OF_CALL = (
    "trajectory_id", "call_id", "messages", "response", "purpose", "source", "model", "model_version", "scripted", "finish_reason",
)  # fmt: skip
_KINDS: dict[Any, str] = {
    str: "string", str | None: "string", int | None: "int64", float: "float64", float | None: "float64", bool: "bool", list[str]: "strings",
    list[dict[str, str]]: "messages", list[TokenLogprob] | None: "logprobs", dict[str, Any] | None: "json",
}  # fmt: skip
COLUMNS = tuple(
    RecordColumn(field.encode_name, _KINDS[kind], meaning)
    for field in msgspec.structs.fields(Record)
    for kind, meaning in [get_args(field.type)]
)


def episode_records(
    episode: Episode, served: Sequence[ServedSequence], group: GroupScores | None, score: EpisodeScore | None, split: str
) -> list[Record]:
    """Build the records of an episode's storable calls; ``score`` is its score in ``group``."""
    return [
        Record(
            **{name: getattr(call, name) for name in _OF_CALL},
            **judged(score),
            split=split,
            window=episode.window,
            agent_id=episode.agent_id,
            # A number beyond 64 bits fits no Parquet column.
            step=call.step if -_INT64 <= call.step < _INT64 else None,
            # As read back from JSON: numbers that it lacks become null.
            response_format=msgspec.json.decode(msgspec.json.encode(call.response_format), type=dict[str, Any] | None),
            logprobs=_logprobs(call.logprobs),
            judge=None if score is None or group is None else group.judge,
            group_size=None if score is None or group is None else group.group_size,
            window_pnl=episode.window_pnl if math.isfinite(episode.window_pnl) else None,
            win_rate=episode.win_rate,
            usable=episode.usable,
            weight=1 / len(served),
            trajectory_ids=list(episode.trajectory_ids),
        )
        for call in served
    ]


def judged(score: EpisodeScore | None) -> dict[str, Any]:
    return {name: None if score is None else getattr(score, name) for name in ("score", "advantage", "rank")}


def is_storable(call: ServedSequence) -> bool:
    """False for a call with invalid Unicode or too deep nesting, which fits no file."""
    try:
        msgspec.json.encode(call)
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def row(record: Record) -> dict[str, Any]:
    """Convert a record to a row of a table: nested values unchanged, ``json`` columns as text."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    if record.response_format is not None:
        plain["responseFormat"] = msgspec.json.encode(record.response_format).decode()
    return plain


def _logprobs(recorded: Sequence[Mapping[str, Any]] | None) -> list[TokenLogprob] | None:
    """Convert the response's tokens; None unless each has a log-probability and a name."""
    tokens = [_logprob(entry) for entry in recorded or ()]
    valid = [entry for entry in tokens if entry is not None]
    return valid if valid and len(valid) == len(tokens) else None


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob | None:
    token, token_id, logprob = entry.get("token"), entry.get("tokenId"), log_probability(entry.get("logprob"))
    if logprob is None:
        return None
    token = token if isinstance(token, str) else None
    token_id = token_id if isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < _INT64 else None
    return None if token is None and token_id is None else TokenLogprob(token, token_id, logprob)
