"""A tiny base for the service: a byte-level tokenizer with a chat template, and a config; its weights are the service's."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from babylon_rl_tests.tiny_tokenizer import make_tokenizer


def base_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: the same whenever it is made."""
    return make_tokenizer(pad_token="<|endoftext|>", bos_token=None)


def write_base(directory: Path) -> Path:
    """Write the tokenizer and a config into ``directory``."""
    base_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory
