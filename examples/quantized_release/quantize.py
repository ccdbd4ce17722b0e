"""Write a copy of a model whose linear layers went through round-to-nearest quantisation.

    python quantize.py MODEL OUTPUT [--bits 4] [--group 64]

MODEL is a directory, a .gguf file or org/name. Each group of neighbouring input weights of an output
channel gets its own scale and offset (asymmetric, minimum to maximum); embeddings and the output head keep
their precision, as is common. The copy holds the dequantised weights: an ordinary safetensors directory
that answers as the quantised model would, on any machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    import torch


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the copy."""
    parser = argparse.ArgumentParser(description="Quantise a model by rounding to nearest in groups.")
    parser.add_argument("model", help="directory, .gguf file or org/name")
    parser.add_argument("output", type=Path, help="directory to write")
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9), metavar="2-8")
    parser.add_argument("--group", type=int, default=64, help="weights that share a scale")
    options = parser.parse_args(arguments)
    if options.group < 1:
        parser.error("--group must be at least 1")
    try:
        count, error = quantize(options.model, options.output, options.bits, options.group)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")
    print(
        f"{options.output}: {count / 1e6:.1f} million weights at {options.bits} bits in groups of "
        f"{options.group}; root mean square change {error:.1%} of the weights' own"
    )


def quantize(spec: str, output: Path, bits: int, group: int) -> tuple[int, float]:
    """Write the quantised copy; return the number of weights changed and their relative RMS error."""
    import torch

    checkpoint = resolve_checkpoint(spec)
    model = load_model(checkpoint, device="cpu", dtype="float32")
    head = model.get_output_embeddings()
    changed = size = 0.0
    count = 0
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                rounded = round_to_nearest(layer.weight, bits, group)
                changed += float((rounded - layer.weight).double().square().sum())
                size += float(layer.weight.double().square().sum())
                count += layer.weight.numel()
                layer.weight.copy_(rounded)
    with quiet():
        model.save_pretrained(output)
        load_tokenizer(checkpoint).save_pretrained(output)
    return count, (changed / size) ** 0.5


def round_to_nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The weight [out, in] with each run of ``group`` inputs on its own grid of ``2**bits`` levels."""
    import torch

    rounded = []
    for part in weight.split(group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
        rounded.append(((part - low) / step).round() * step + low)
    return torch.cat(rounded, dim=1)


if __name__ == "__main__":
    main()
