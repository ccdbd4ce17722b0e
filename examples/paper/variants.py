"""What is compared, and in which profile. Rates and recipes were chosen on the development pairs alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiment import Scale, Variant

from pytest_muscle.adapter import Recipe

if TYPE_CHECKING:
    from pytest_muscle.adapter.config import Mask

WHOLE = {"tokens": "all"}
CROSS_ENTROPY = 0.2
AVERAGE = Recipe("average", cross_entropy_weight=CROSS_ENTROPY)
PAPER_MASKS: tuple[Mask, ...] = (
    "student_wrong",
    "old_only",
    "old_correct",
    "token_likelihood",
    "sequence_likelihood",
)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("new model", None),
        # Controls: as many steps, without the old model.
        Variant("cross-entropy", Recipe(cross_entropy_weight=1.0)),
        Variant("cross-entropy + new", Recipe("new_only", cross_entropy_weight=0.5)),
        # The paper: equation 1 at T = 2 over prompt and answer; its ablation's masks at both temperatures.
        Variant("paper", Recipe("student_wrong", 2.0), settings=WHOLE),
        *(
            Variant(f"{mask}, T={temperature}", Recipe(mask, temperature), settings=WHOLE)
            for mask in PAPER_MASKS
            for temperature in (1, 2)
            if (mask, temperature) != ("student_wrong", 2)
        ),
        # On the answer alone, with some cross-entropy.
        Variant("average", AVERAGE),
        Variant("average, T=2", replace(AVERAGE, temperature=2.0)),
        Variant("average, guard right", replace(AVERAGE, guard="right")),
        Variant("average, guard flips", replace(AVERAGE, guard="flips")),
        Variant("average, guard groups", replace(AVERAGE, guard="groups")),
        Variant("truth-weighted", Recipe("truth_weighted", cross_entropy_weight=CROSS_ENTROPY)),
    )
}


@dataclass(frozen=True, slots=True)
class Profile:
    """Pairs of bases, and the variants of each scenario in the order in which they are computed."""

    pairs: tuple[str, ...]
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    scale: Scale


CONTROLS = ("cross-entropy", "cross-entropy + new")
MASKS = tuple(name for name in VARIANTS if "T=" in name)
GUARDS = ("average, guard right", "average, guard flips")
FULL = (
    ("biased-town", ("new model", "cross-entropy", "paper", "average", *GUARDS, "average, guard groups")),
    ("small-gap-chain", ("new model", *CONTROLS, "paper", "average", "truth-weighted")),
    ("large-gap-chain", ("new model", *CONTROLS, "paper", "average", "truth-weighted")),
    ("small-gap-choice2", ("new model", *CONTROLS, "paper", "average", *GUARDS, "truth-weighted")),
    ("small-gap-choice2", MASKS),
    ("other-format-choice4", ("new model", *CONTROLS, "paper", "average")),
    ("more-parameters-choice4", ("new model", *CONTROLS, "paper", "average")),
    ("small-gap-summary", ("new model", *CONTROLS, "paper", "average")),
    ("other-tokenizer-chain", ("new model", *CONTROLS, "average")),
    ("small-gap-chain", MASKS),
)
PROFILES = {
    "smoke": Profile(
        ("smoke",),
        (
            ("small-gap-choice2", ("new model", "cross-entropy", "average")),
            ("biased-town", ("new model", "average, guard groups")),
        ),
        Scale(golden=200, train=200, task_epochs=1, epochs=1, length=0.1),
    ),
    "full": Profile(tuple(f"test-{number}" for number in range(6, 11)), FULL, Scale()),
}
