"""The base model's tokenizer, and the check that recorded log-probabilities belong to its tokens.

Token ids of another base would silently train another text, so recorded ids must decode to the recorded answer. Otherwise the sequence is
treated as recorded without log-probabilities; none are invented.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from babylon_rl.chats import log_probability
from babylon_rl.errors import ModelUnavailable, first_line
from babylon_rl.models.base_model import NAME, base_model_dir, quiet_loading
from babylon_rl.models.encoding import control_ids, encode_prompt, encode_text
from babylon_rl.settings import Settings
from babylon_rl.training.backends.protocol import TrainSequence

NONE_RECORDED = "recorded without logprobs"
NO_IDS = "recorded with logprobs but without token ids"
OTHER_BASE = "recorded with the token ids of another base model"
NOT_FINITE = "recorded with logprobs that are no numbers"
WITH_REASONING = "recorded with the token ids of its reasoning too"
_FILES = ["config.json", "tokenizer*.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt"]

TokenLogprobs = tuple[tuple[int, float], ...]


class BaseTokens:
    """Tokenizer of ``base_model``: a directory, the packaged model's name, or a hub id, of which only small files are downloaded."""

    def __init__(self, settings: Settings, base_model: str) -> None:
        self.name = base_model
        self._settings = settings

    @property
    def directory(self) -> Path:
        """Directory of the tokenizer. Raises ModelUnavailable when the hub does not provide it."""
        if Path(self.name).expanduser().is_dir():
            return Path(self.name).expanduser()
        if self.name == NAME:
            # By that name the packaged model is meant, whatever LOCAL_BASE_MODEL names.
            return base_model_dir(self._settings.model_copy(update={"local_base_model": None}))
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.name, allow_patterns=_FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as failed:
            raise ModelUnavailable(
                f"The tokenizer of BASE_MODEL={self.name} is not here and the hub does not give it ({type(failed).__name__}); recorded "
                "token ids cannot be checked without it. Set BASE_MODEL to a directory with its tokenizer files, or mend the connection."
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        directory = self.directory
        from transformers import AutoTokenizer

        with quiet_loading():
            try:
                return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            except (OSError, ValueError) as failed:
                raise ModelUnavailable(f"{directory} holds no tokenizer that can be loaded: {first_line(failed)}") from None

    def recorded(self, sequence: TrainSequence) -> TokenLogprobs | str:
        """Return a sequence's (token id, log-probability) pairs, or the reason why it has none."""
        if not sequence.logprobs:
            return NONE_RECORDED
        # All or nothing: with one token left out the rest would train as another text.
        tokens: list[tuple[int, float]] = []
        for token in sequence.logprobs:
            token_id, value = token.get("tokenId"), log_probability(token.get("logprob"))
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                return NO_IDS
            if value is None:
                return NOT_FINITE
            tokens.append((token_id, value))
        ids = [token_id for token_id, _ in tokens]
        # Ids of another vocabulary are out of range, or decode to another text.
        if min(ids) < 0 or max(ids) >= len(self.tokenizer):
            return OTHER_BASE
        # Only at the end of an answer are special tokens none of its text.
        control, spoken = control_ids(self.tokenizer), list(ids)
        while spoken and spoken[-1] in control:
            spoken.pop()
        text, said = str(self.tokenizer.decode(spoken, clean_up_tokenization_spaces=False)).strip(), sequence.response.strip()
        if text == said:
            return tuple(tokens)
        # Servers that take the reasoning out of an answer report its tokens with the others.
        return WITH_REASONING if said and text.endswith(said) else OTHER_BASE

    def answer_tokens(self, sequence: TrainSequence) -> int:
        return len(encode_text(self.tokenizer, sequence.response))

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        return len(encode_prompt(self.tokenizer, messages))
