"""What is compared, and in which profile. Rates and recipes were chosen on the development pairs alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiment import Scale, Variant

from pytest_muscle.adapter import Recipe

WHOLE = {"tokens": "all"}
DEFAULT = Recipe("truth_weighted", cross_entropy_weight=0.1)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("new model", None),
        # Controls: as many steps, without the old model.
        Variant("cross-entropy", Recipe(cross_entropy_weight=1.0)),
        Variant("cross-entropy + new", Recipe("new_only", cross_entropy_weight=0.5)),
        Variant("KL to new alone", Recipe("new_only")),
        # The paper: equation 1 at T = 2 over prompt and answer; the masks of its ablation at T = 1.
        Variant("paper", Recipe("student_wrong", 2.0), rate=2e-3, settings=WHOLE),
        Variant("paper, T=1", Recipe("student_wrong"), rate=2e-3, settings=WHOLE),
        Variant("paper + cross-entropy", Recipe("student_wrong", 1.0, 0.5), rate=2e-3, settings=WHOLE),
        Variant("old_only", Recipe("old_only"), rate=2e-3, settings=WHOLE),
        Variant("old_correct", Recipe("old_correct"), rate=2e-3, settings=WHOLE),
        Variant("token_likelihood", Recipe("token_likelihood"), rate=2e-3, settings=WHOLE),
        Variant("sequence_likelihood", Recipe("sequence_likelihood"), rate=2e-3, settings=WHOLE),
        # On the answer alone.
        Variant("default", DEFAULT),
        Variant("truth_weighted", Recipe("truth_weighted")),
        Variant("default, T=2", replace(DEFAULT, temperature=2.0)),
        Variant("default, guard right", replace(DEFAULT, guard="right")),
        Variant("default, guard groups", replace(DEFAULT, guard="groups")),
        # Three times as long, the control as well.
        Variant("default, 3 epochs", DEFAULT, rate=2e-3, settings={"epochs": 3}),
        Variant("cross-entropy, 3 epochs", Recipe(cross_entropy_weight=1.0), 2e-3, {"epochs": 3}),
    )
}


@dataclass(frozen=True, slots=True)
class Profile:
    """Pairs of bases, and the variants of each scenario in the order in which they are computed."""

    pairs: tuple[str, ...]
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    scale: Scale


CONTROLS = ("cross-entropy", "cross-entropy + new")
FULL = (
    ("small-gap-chain", ("new model", *CONTROLS, "paper", "default")),
    ("small-gap-choice2", ("new model", *CONTROLS, "paper", "default")),
    ("large-gap-chain", ("new model", *CONTROLS, "paper", "default")),
    (
        "biased-old-choice2",
        ("new model", *CONTROLS, "paper", "default", "default, guard right", "default, guard groups"),
    ),
    ("small-gap-summary", ("new model", "cross-entropy", "paper", "default")),
    ("other-tokenizer-chain", ("new model", "cross-entropy", "default")),
    ("more-parameters-choice4", ("new model", "cross-entropy", "default")),
    ("other-format-choice4", ("new model", "cross-entropy", "default")),
    (
        "biased-records-chain",
        ("new model", *CONTROLS, "paper", "default", "default, guard right", "default, guard groups"),
    ),
    ("small-gap-choice2", ("cross-entropy, 3 epochs", "default, 3 epochs")),
    ("small-gap-chain", ("cross-entropy, 3 epochs", "default, 3 epochs")),
    ("large-gap-chain", ("cross-entropy, 3 epochs", "default, 3 epochs")),
    ("other-tokenizer-chain", ("cross-entropy, 3 epochs", "default, 3 epochs")),
    ("small-gap-summary", ("cross-entropy, 3 epochs", "default, 3 epochs")),
    # Recipes beside the default, last: they are the first to go where time is short.
    ("small-gap-choice2", ("truth_weighted", "paper, T=1", "old_only", "default, T=2", "KL to new alone")),
    ("small-gap-chain", ("truth_weighted", "paper, T=1", "old_only", "default, T=2")),
    ("large-gap-chain", ("default, guard right",)),
    (
        "small-gap-choice2",
        ("old_correct", "token_likelihood", "sequence_likelihood", "paper + cross-entropy"),
    ),
)
PROFILES = {
    "smoke": Profile(
        ("smoke",),
        (
            ("small-gap-choice2", ("new model", "cross-entropy", "default")),
            ("small-gap-chain", ("new model", "default")),
        ),
        Scale(golden=200, train=200, task_epochs=1, length=0.1),
    ),
    "full": Profile(tuple(f"test-{number}" for number in range(1, 6)), FULL, Scale()),
}
