"""Checkpoints: where a local model lies on disk, what identifies it, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
_TEMPLATES = ("chat_template*", "*.jinja", "additional_chat_templates/*.jinja")
_CONTENT = (
    *_TOKENIZER,
    *_TEMPLATES,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.py",
    "*.safetensors",
    "*.safetensors.index.json",
)
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_HOMES = ("_name_or_path", "base_model_name_or_path")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local causal LM: a transformers directory or ``.gguf`` file and, on it, perhaps a PEFT adapter."""

    spec: str
    base: Path
    adapter: Path | None = None

    def fingerprint(self) -> str:
        """The sha256 of weights, configuration, tokenizer and adapter, wherever they lie."""
        digest = hashlib.sha256()
        for place in (self.base, self.adapter):
            for name, file in _content(place) if place else ():
                digest.update(f"{name}\0{_file_digest(file)}\n".encode())
            digest.update(b"\n")
        return digest.hexdigest()


def resolve_checkpoint(
    spec: str, *, allow_pickle: bool = False, revision: str | None = None, beside: Path | None = None
) -> Checkpoint:
    """Find the checkpoint that a model spec names.

    ``spec`` is a directory, a ``.gguf`` file, or ``org/name[@revision]`` on the Hugging Face hub (downloaded
    unless it is in the local cache). A directory with ``adapter_config.json`` is a PEFT adapter; its base is
    looked for at the path it names, seen from the adapter's directory and then from the working directory,
    and else on the hub. A relative path is tried from ``beside`` first where that is given.

    Raises ``MuscleError`` if anything needed is missing, or if the weights exist as pickles alone and
    ``allow_pickle`` is false.
    """
    place = _find(spec, beside, allow_pickle, revision)
    if place.is_file():
        if place.suffix.lower() != ".gguf":
            raise MuscleError(
                f"model {spec!r} is a file, but not a .gguf file; name the checkpoint's directory"
            )
        return Checkpoint(spec, place)
    if (place / "adapter_config.json").is_file():
        return _with_base(spec, place, allow_pickle)
    if not (place / "config.json").is_file():
        raise MuscleError(
            f"model directory {place} has no config.json; save the model there with "
            "model.save_pretrained(...), or name the directory that holds it"
        )
    _require_tokenizer(place)
    _require_weights(place, "model", allow_pickle)
    return Checkpoint(spec, place)


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the left and with a padding token.

    An adapter's own tokenizer is preferred to its base's.
    """
    from transformers import AutoTokenizer

    home = checkpoint.base
    if checkpoint.adapter and _has_tokenizer(checkpoint.adapter):
        home = checkpoint.adapter
    with quiet(), _explained(checkpoint.spec, "tokenizer", home):
        directory = converted_gguf(home) if home.is_file() else home
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, padding_side="left", trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(
    checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """Load the weights onto a device, ready for inference.

    ``dtype`` ``auto`` is float32 on a CPU and what the checkpoint was saved in elsewhere; for ``device`` see
    ``resolve_device``. A file without some of the model's weights is an error, as the library would fill
    them with random numbers.
    """
    from transformers import AutoModelForCausalLM

    target = resolve_device(device)
    with quiet(), _explained(checkpoint.spec, "model", checkpoint.base):
        directory = converted_gguf(checkpoint.base) if checkpoint.base.is_file() else checkpoint.base
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=_resolve_dtype(dtype, target),
            device_map=None if target.type == "cpu" else {"": target},
            use_safetensors=_has(directory, ("*.safetensors",)),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise MuscleError(
            f"model {checkpoint.spec!r}: {len(missing)} weights that its config.json asks for are not in "
            f"{checkpoint.base}, the first being {missing[0]!r}; save the checkpoint again"
        )
    # An adapter trained on this model writes this name into its own configuration.
    hub = None if checkpoint.adapter or Path(checkpoint.spec).exists() else _HUB_ID.fullmatch(checkpoint.spec)
    model.name_or_path = model.config._name_or_path = hub["repo"] if hub else str(checkpoint.base)
    return (_with_adapter(model, checkpoint, target) if checkpoint.adapter else model).eval()


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the accelerator if there is one, else the CPU.

    Of several accelerators the workers of pytest-xdist take one each in turn.
    """
    import torch

    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise MuscleError(
                f"device {name!r} cannot be used ({_first_line(error)}); use auto, cpu, cuda or cuda:N"
            ) from None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    count = torch.accelerator.device_count()
    return torch.device(accelerator.type, (int(worker[1]) if worker else 0) % count)


def cache_directory() -> Path:
    """Where converted checkpoints are kept: ``$XDG_CACHE_HOME/pytest-muscle``, by default in ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pytest-muscle"


def converted_gguf(file: Path, cache: Path | None = None) -> Path:
    """A safetensors copy of a GGUF file, made at first use and kept by the file's digest.

    Dequantising takes far longer than reading the result. The copy is complete or absent, also when
    several processes ask for it or one is killed.
    """
    from filelock import FileLock

    root = (cache or cache_directory()) / "gguf"
    target = root / _file_digest(file)
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix="part-", dir=root))
            try:
                _convert_gguf(file, work)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


def _convert_gguf(file: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), redirect_stderr(StringIO()):
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # A model that came out of a GGUF file counts as quantised and refuses to be saved.
        config = type(loaded.config)(**_without(loaded.config.to_dict(), *_HOMES, "quantization_config"))
        with torch.device("meta"):
            plain: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(directory)


def _find(spec: str, beside: Path | None, allow_pickle: bool, revision: str | None) -> Path:
    path = Path(spec).expanduser()
    for candidate in (beside / path, path) if beside else (path,):
        if candidate.exists():
            return candidate.resolve()
    hub = _HUB_ID.fullmatch(spec)
    if hub is None or path.suffix.lower() == ".gguf":
        raise MuscleError(
            f"model {spec!r} does not exist (looked for {path.absolute()}); "
            "give a directory, a .gguf file, or org/name for a model on the Hugging Face hub"
        )
    return _download(spec, hub["repo"], hub["revision"] or revision, allow_pickle)


def _download(spec: str, repo: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    wanted = [*_CONTENT, *(("*.bin", "*.bin.index.json") if allow_pickle else ())]
    try:
        with quiet():
            # Subfolders hold other formats of the same weights; templates are the exception.
            place = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=["onnx/*", "original/*", "gguf/*"],
            )
    except (OSError, HFValidationError, RevisionResolutionError) as error:
        raise MuscleError(
            f"model {spec!r} is neither a directory here nor can it be had from the Hugging Face hub "
            f"({_first_line(error)}); check the name, your network and HF_HUB_OFFLINE, and for a private or "
            "gated model log in with `hf auth login`"
        ) from error
    return Path(place)


def _with_base(spec: str, adapter: Path, allow_pickle: bool) -> Checkpoint:
    config = adapter / "adapter_config.json"
    name = _read_json(config).get("base_model_name_or_path")
    remedy = f"put the base model's path or hub id into base_model_name_or_path in {config}"
    if not isinstance(name, str) or not name:
        raise MuscleError(f"adapter {adapter} does not name its base model; {remedy}")
    _require_weights(adapter, "adapter", allow_pickle)
    try:
        base = resolve_checkpoint(name, allow_pickle=allow_pickle, beside=adapter)
    except MuscleError as error:
        raise MuscleError(
            f"adapter {adapter}: its base model {name!r} cannot be used: {error}; or {remedy}"
        ) from error
    if base.adapter:
        raise MuscleError(
            f"adapter {adapter}: its base {name!r} is an adapter itself; merge that into its own base "
            "(merge_and_unload, save_pretrained) and name the result as the base"
        )
    return Checkpoint(spec, base.base, adapter)


def _with_adapter(model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device) -> PeftModel:
    from peft import PeftModel

    with quiet(), _explained(checkpoint.spec, "adapter", checkpoint.adapter or checkpoint.base):
        return PeftModel.from_pretrained(model, str(checkpoint.adapter), torch_device=str(device))


def _require_tokenizer(directory: Path) -> None:
    if not _has_tokenizer(directory):
        raise MuscleError(
            f"model directory {directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab files); "
            "save the tokenizer there too: tokenizer.save_pretrained(...)"
        )


def _require_weights(directory: Path, kind: str, allow_pickle: bool) -> None:
    if _has(directory, ("*.safetensors",)):
        return
    if not _has(directory, _PICKLES):
        raise MuscleError(f"{kind} directory {directory} has no weights (*.safetensors)")
    if not allow_pickle:
        raise MuscleError(
            f"{kind} directory {directory} has its weights as pickles only, and loading a pickle can run any "
            "code; save them as safetensors (save_pretrained does), or, if you trust the file, set "
            "allow_pickle = true for this model in [tool.pytest-muscle.models.NAME]"
        )


def _has_tokenizer(directory: Path) -> bool:
    return _has(directory, ("tokenizer.json", "tokenizer.model", "vocab*", "*.model", "tokenizer.tiktoken"))


def _has(directory: Path, patterns: tuple[str, ...]) -> bool:
    return any(file.is_file() for pattern in patterns for file in directory.glob(pattern))


def _content(place: Path) -> list[tuple[str, Path]]:
    if place.is_file():
        return [("gguf", place)]
    patterns = _CONTENT if _has(place, ("*.safetensors",)) else _CONTENT + _PICKLES
    files = {file for pattern in patterns for file in place.glob(pattern) if file.is_file()}
    return sorted((file.relative_to(place).as_posix(), file) for file in files)


_digests: dict[tuple[str, int, int], str] = {}


def _file_digest(file: Path) -> str:
    real = file.resolve()
    # The hub's cache names a large file by its sha256.
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    if file.name in ("config.json", "adapter_config.json"):
        content = _without(_read_json(file), *_HOMES)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with real.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MuscleError(
            f"{file} cannot be read as JSON ({_first_line(error)}); save the checkpoint again"
        ) from None
    if not isinstance(content, dict):
        raise MuscleError(f"{file} must hold a JSON object; save the checkpoint again")
    return content


def _resolve_dtype(name: str, device: torch.device) -> torch.dtype | str:
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise MuscleError(f"dtype {name!r} is unknown; use auto, float32, bfloat16, float16 or float64")
    return dtype


@contextmanager
def _explained(spec: str, part: str, place: Path) -> Iterator[None]:
    """Turn what the libraries raise over a broken checkpoint into one message that names it."""
    import torch

    try:
        yield
    except (MuscleError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise MuscleError(
            f"model {spec!r}: the {part} in {place} cannot be loaded "
            f"({type(error).__name__}: {_first_line(error)}); does it load with transformers itself?"
        ) from error


def _without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
