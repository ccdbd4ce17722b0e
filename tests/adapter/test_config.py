from dataclasses import replace

import pytest

from pytest_muscle.adapter.config import (
    DEFAULT_RECIPE,
    PRESETS,
    CompatibilityConfig,
    Recipe,
    TaskConfig,
)
from pytest_muscle.errors import MuscleError


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank", 0),
        ("rank", 1.5),
        ("rank", True),
        ("alpha", 0.0),
        ("dropout", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1.0),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("epochs", 0),
        ("validation_share", 1.0),
        ("seed", -1),
        ("max_length", 1),
        ("save_steps", 0),
        ("schedule", "none"),
        ("tokens", "some"),
        ("texts", "both"),
        ("overlong", "error"),
        ("targets", ["q_proj"]),
        ("recipe", "best"),
        ("candidates", ()),
        ("pilot_share", 0.0),
        ("teacher", "top-k"),
        ("selection", "accuracy"),
    ],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(MuscleError, match=f"adapter setting {setting}"):
        CompatibilityConfig(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"), [("mask", "none"), ("temperature", 0.0), ("cross_entropy_weight", 1.1)]
)
def test_recipes_out_of_range_are_named(setting, value):
    with pytest.raises(MuscleError, match=f"adapter setting {setting}"):
        Recipe(**{setting: value})


def test_the_recipe_cannot_be_chosen_without_validation():
    with pytest.raises(MuscleError, match="validation_share above 0"):
        CompatibilityConfig(recipe="auto", validation_share=0.0)


def test_paper_is_the_papers():
    paper = CompatibilityConfig.preset("paper")
    assert paper.recipe == Recipe("student_wrong", temperature=2.0)
    assert (paper.rank, paper.alpha, paper.dropout, paper.targets) == (128, 256.0, 0.0, ())
    assert (paper.learning_rate, paper.warmup_steps, paper.weight_decay) == (1e-4, 500, 0.0)
    assert (paper.gradient_accumulation, paper.epochs, paper.validation_share) == (8, 10, 0.2)
    assert (paper.selection, paper.tokens, paper.texts) == ("validation_loss", "all", "answer")


def test_presets_take_changes_and_refuse_unknown_ones():
    assert CompatibilityConfig.preset("compressed").recipe == Recipe("old_only")
    assert CompatibilityConfig.preset("compressed").tokens == "all"
    assert CompatibilityConfig().recipe == DEFAULT_RECIPE
    assert CompatibilityConfig.preset("default") == CompatibilityConfig()
    assert CompatibilityConfig.preset("paper", epochs=1).epochs == 1
    with pytest.raises(MuscleError, match=", ".join(PRESETS)):
        CompatibilityConfig.preset("fast")
    with pytest.raises(MuscleError, match="'rnk'"):
        CompatibilityConfig.preset("paper", rnk=1)


def test_settings_from_a_table():
    table = {"preset": "paper", "temperature": 1.0, "targets": ["q_proj"], "rank": 4}
    config = CompatibilityConfig.from_table(table)
    assert config.recipe == Recipe("student_wrong", 1.0)
    assert (config.rank, config.targets, config.alpha) == (4, ("q_proj",), 256.0)
    changed = CompatibilityConfig.from_table({"mask": "old_correct", "guard": "right"}).recipe
    assert changed == replace(DEFAULT_RECIPE, mask="old_correct", guard="right")
    assert CompatibilityConfig.from_table({"recipe": "auto"}).recipe == "auto"
    assert CompatibilityConfig.from_table({}) == CompatibilityConfig()
    with pytest.raises(MuscleError, match=r"unknown key 'epoch'.*epochs"):
        CompatibilityConfig.from_table({"epoch": 1})
    with pytest.raises(MuscleError, match="'mask' does not go with 'recipe'"):
        CompatibilityConfig.from_table({"recipe": "auto", "mask": "old_only"})


def test_task_adapters_learn_answers():
    assert TaskConfig().tokens == "answer"
    with pytest.raises(MuscleError, match="adapter setting selection"):
        TaskConfig(selection="nfr")


def test_recipes_say_what_they_are_and_need():
    assert str(Recipe("student_wrong", 2.0)) == "student_wrong, T=2"
    assert str(Recipe("old_only", 1.0, 0.25)) == "old_only, T=1, cross-entropy 0.25"
    assert str(Recipe(cross_entropy_weight=1.0)) == "cross-entropy"
    assert (Recipe("old_only").uses_old, Recipe("old_only").uses_new) == (True, False)
    assert (Recipe("truth_weighted").uses_old, Recipe("truth_weighted").uses_new) == (True, True)
    assert (Recipe("average").uses_old, Recipe("average").uses_new) == (True, True)
    assert not Recipe(cross_entropy_weight=1.0).uses_old
