"""The student: the new base with a LoRA adapter that starts as the new model's task adapter."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.local.output import find_output_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from pytest_muscle.adapter.config import TrainingConfig
    from pytest_muscle.models.checkpoint import Checkpoint

ADAPTER = "default"

Role = Literal["old", "new"]


@dataclass(frozen=True, slots=True)
class _Factors:
    """B @ A * scaling is what a LoRA layer adds to its linear layer."""

    a: Tensor
    b: Tensor
    scaling: float


class Student:
    """A base model with the adapter in training, and the way back to where the training began."""

    def __init__(self, model: PeftModel, *, had_adapter: bool, rank: int, notes: tuple[str, ...]) -> None:
        self.model = model
        self.rank = rank
        self.notes = notes
        self._had_adapter = had_adapter
        self._adapters: dict[Role, str | None] = {}
        self._start = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self.output = find_output_layer(model.get_base_model())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        mine = f".{ADAPTER}."
        return ((name, p) for name, p in self.model.named_parameters() if "lora_" in name and mine in name)

    def reset(self) -> None:
        """Go back to the adapter that the training began with."""
        self.load(self._start)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over an adapter's tensors, named as the model's parameters are."""
        for name, parameter in self._tensors():
            parameter.copy_(tensors[name])

    def load_directory(self, directory: Path) -> None:
        """Take over the adapter saved in a directory."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        tensors = load_file(directory / "adapter_model.safetensors")
        set_peft_model_state_dict(self.model, tensors, adapter_name=ADAPTER)

    def save(self, directory: Path, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter as PEFT does, safetensors only."""
        self.model.save_pretrained(
            str(directory), selected_adapters=[ADAPTER], state_dict=state_dict, save_embedding_layers=False
        )

    def keep_start(self) -> None:
        """Let the student act as the new model: what it began with stays, as a frozen adapter."""
        if not self._had_adapter:
            self._adapters["new"] = None
            return
        self._adapters["new"] = "new"
        self.model.add_adapter("new", self.model.peft_config[ADAPTER])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_" in name and ".new." in name:
                    parameter.copy_(self._start[name.replace(".new.", f".{ADAPTER}.")])
        self.model.set_adapter(ADAPTER)

    def keep_old(self, adapter: Path | None, device: torch.device) -> bool:
        """Let the student act as the old model, which is its base with another adapter, or with none.

        False where that cannot be: the adapter is on the output layer, too, which is applied apart here.
        """
        if adapter and self._is_on_output(adapter):
            return False
        self._adapters["old"] = "old" if adapter else None
        if adapter:
            self.model.load_adapter(str(adapter), "old", torch_device=str(device))
            self.model.set_adapter(ADAPTER)
        return True

    def _is_on_output(self, adapter: Path) -> bool:
        from peft.tuners.tuners_utils import check_target_module_exists

        base: Any = self.model.get_base_model()
        output = base.get_output_embeddings()
        places = (name for name, module in base.named_modules() if module is output)
        config = _adapter_config(adapter)
        return any(check_target_module_exists(config, place) for place in places)

    @contextmanager
    def acting_as(self, role: Role) -> Iterator[None]:
        """Within, the model is one of those that the training began with; base weights are shared."""
        training, adapter = self.model.training, self._adapters[role]
        self.model.eval()
        try:
            if adapter:
                self.model.set_adapter(adapter, inference_mode=True)
                yield
            else:
                with self.model.disable_adapter():
                    yield
        finally:
            # Switching also switches which parameters are trained.
            self.model.set_adapter(ADAPTER)
            self.model.train(training)


def shares_base(old: Checkpoint, new: Checkpoint) -> bool:
    """Whether the old model is the new one's base, alone or with a LoRA that can stand beside others."""
    if not old.base.samefile(new.base):
        return False
    return old.adapter is None or _oddity(_adapter_config(old.adapter)) is None


def build_student(new: PreTrainedModel | PeftModel, config: TrainingConfig) -> Student:
    """Put the adapter to be trained on the new model's base, in place.

    Where the new model has a LoRA task adapter the student begins as that: the factors are padded to the
    larger rank and rescaled, so that the function is the same. Otherwise it begins as the base.
    Raises ``MuscleError`` for adapters of other kinds.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    from pytest_muscle.adapter.fused import fuse

    factors = _take_factors(new) if isinstance(new, PeftModel) else {}
    base: Any = new.unload() if isinstance(new, PeftModel) else new
    rank, notes = _rank(factors, config.rank)
    names = _target_names(base, factors, config.targets)
    lora = LoraConfig(
        r=rank,
        lora_alpha=config.alpha * rank / config.rank,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
        bias="none",
    )
    base.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(config.seed)
        model: Any = get_peft_model(base, lora, adapter_name=ADAPTER)
    _copy_factors(model, factors, lora)
    fuse(model)
    return Student(model, had_adapter=bool(factors), rank=rank, notes=notes)


def _take_factors(model: PeftModel) -> dict[str, _Factors]:
    from peft.tuners.lora import LoraLayer

    (name,) = model.peft_config
    _refuse_other_kinds(model.peft_config[name])
    layers: list[tuple[str, Any]] = [
        (place, module)
        for place, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    ]
    return {
        place: _Factors(
            module.lora_A[name].weight.detach().clone(),
            module.lora_B[name].weight.detach().clone(),
            module.scaling[name],
        )
        for place, module in layers
    }


def _adapter_config(directory: Path) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(directory))


def _refuse_other_kinds(config: Any) -> None:
    if oddity := _oddity(config):
        raise MuscleError(
            f"the new model's adapter is {oddity}, from which a compatibility adapter cannot begin; merge it "
            "into its base (merge_and_unload, save_pretrained) and name the result as the new model"
        )


def _oddity(config: Any) -> str | None:
    """What an adapter is, if it is more than LoRA factors."""
    kind = config.peft_type.value
    wanted = {
        "use_dora": False,
        "lora_bias": False,
        "bias": "none",
        "modules_to_save": None,
        "trainable_token_indices": None,
        "layer_replication": None,
        "target_parameters": None,
    }
    odd = [name for name, plain in wanted.items() if (getattr(config, name, plain) or plain) != plain]
    if kind != "LORA":
        return f"of the kind {kind}"
    return f"a LoRA with {', '.join(odd)}" if odd else None


def _rank(factors: Mapping[str, _Factors], wanted: int) -> tuple[int, tuple[str, ...]]:
    ranks = {len(factor.a) for factor in factors.values()}
    if not ranks or ranks == {wanted}:
        return wanted, ()
    rank = max(wanted, *ranks)
    found = "/".join(str(r) for r in sorted(ranks))
    return rank, (
        f"the new model's adapter has rank {found}, the settings ask for {wanted}: rank {rank} is trained, "
        "beginning with the same function",
    )


def _target_names(base: Any, factors: Mapping[str, _Factors], wanted: tuple[str, ...]) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    output = base.get_output_embeddings()
    linear = {
        place.rpartition(".")[2]
        for place, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    if unknown := sorted(set(wanted) - linear):
        raise MuscleError(
            f"adapter setting targets: the new model has no linear layer {unknown[0]!r}; "
            f"it has {', '.join(sorted(linear))}"
        )
    return sorted(set(wanted or linear) | {place.rpartition(".")[2] for place in factors})


@torch.no_grad()
def _copy_factors(model: PeftModel, factors: Mapping[str, _Factors], lora: LoraConfig) -> None:
    """The first rows of A and columns of B become the task adapter's; new columns of B stay zero."""
    scaling = lora.lora_alpha / lora.r
    base = model.get_base_model()
    for place, given in factors.items():
        layer: Any = base.get_submodule(place)
        rank = len(given.a)
        layer.lora_A[ADAPTER].weight[:rank] = given.a
        layer.lora_B[ADAPTER].weight[:, :rank] = given.b * (given.scaling / scaling)
