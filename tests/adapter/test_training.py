"""Whole trainings of tiny models."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from small import load, quick, records
from tiny import save_tiny_model

from pytest_muscle import compare
from pytest_muscle.adapter import (
    CompatibilityConfig,
    Recipe,
    TaskConfig,
    record_judgement,
    sides,
    train_compatibility_adapter,
    train_task_adapter,
    trainer,
)
from pytest_muscle.adapter.data import encode_cases, read_cases, split_cases
from pytest_muscle.adapter.progress import Note, Stage, Step, Validated
from pytest_muscle.adapter.selection import Validation, select_epoch, select_recipe
from pytest_muscle.adapter.student import build_student, shares_base
from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions
from pytest_muscle.models.checkpoint import load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.encoding import Encoder
from pytest_muscle.models.quiet import quiet

RECORDS = records(24)


def train(old, new, output, config=None, data=RECORDS, **changes):
    return train_compatibility_adapter(str(old), str(new), data, output, config or quick(), **changes)


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def assert_same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def adapter(tiny_model, tiny_model_b, tmp_path_factory):
    """A finished training, with its events."""
    events = []
    output = tmp_path_factory.mktemp("finished") / "adapter"
    result = train(tiny_model, tiny_model_b, output, progress=events.append)
    return result, events


def test_an_adapter_that_peft_loads(adapter, tiny_model_b):
    result, _ = adapter
    names = {path.name for path in result.path.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "adapter_report.json", "README.md"}
    assert list(result.path.parent.iterdir()) == [result.path]
    with quiet():
        model = PeftModel.from_pretrained(load(tiny_model_b), result.path)
    tokens = torch.tensor([[1, 40, 50]])
    with torch.no_grad():
        changed = model(tokens).logits - load(tiny_model_b)(tokens).logits
    assert changed.abs().max() > 0.01
    assert model.peft_config["default"].base_model_name_or_path == str(tiny_model_b)


def test_the_loss_falls_and_everything_is_reported(adapter, tiny_model, tiny_model_b):
    result, events = adapter
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == list(range(1, 11))
    assert {step.steps for step in steps} == {10}
    assert steps[-1].loss < steps[0].loss
    assert all(0 <= step.from_old <= 1 and step.seconds_left >= 0 for step in steps)
    validated = [event.validation for event in events if isinstance(event, Validated)]
    assert validated == [result.new, *result.epochs]
    assert [epoch.epoch for epoch in result.epochs] == [1, 2]
    assert any(isinstance(event, Stage) for event in events)

    report = json.loads((result.path / "adapter_report.json").read_text())
    assert report["schema"] == "pytest-muscle-adapter/1"
    assert report["models"]["old"]["spec"] == str(tiny_model)
    assert report["recipe"] == "student_wrong, T=1"
    assert [entry["loss"] for entry in report["steps"]] == [step.loss for step in steps]
    assert (report["train"]["records"], report["validation_records"]) == (24, 6)
    assert report["seconds"] > 0
    assert report["peak_memory"] > 1e7
    card = (result.path / "README.md").read_text()
    assert card.startswith(f'---\nbase_model: "{tiny_model_b}"\nlibrary_name: peft\n')
    assert report["models"]["old"]["fingerprint"] in card
    assert f"| before | {result.new.accuracy:.4f} | {result.new.nfr:.4f} |" in card


def test_a_finished_run_gives_its_result_again(adapter, tiny_model, tiny_model_b):
    result, _ = adapter
    assert train(tiny_model, tiny_model_b, result.path, progress=pytest.fail) == result


def test_other_inputs_do_not_overwrite(adapter, tiny_model, tiny_model_b):
    result, _ = adapter
    with pytest.raises(MuscleError, match="exists and is not of this run"):
        train(tiny_model, tiny_model_b, result.path, quick(seed=1))


def test_the_golden_judgement_is_added(adapter, tmp_path):
    result, _ = adapter
    copy = shutil.copytree(result.path, tmp_path / "copy")
    record_judgement(copy, {"nfr": 0.055, "accuracy_new": 0.64}, {"nfr": 0.02, "accuracy_new": None})
    assert "| nfr | 0.0550 | 0.0200 |" in (copy / "README.md").read_text()
    report = json.loads((copy / "adapter_report.json").read_text())
    assert report["golden"]["before"] == {"nfr": 0.055, "accuracy_new": 0.64}


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_cached_teachers_teach_what_live_ones_do(tiny_model, tiny_model_b, tmp_path, tokens, epochs):
    adapters, stages = {}, {}
    for teacher in ("cached", "live"):
        events = []
        changes = {"teacher": teacher, "tokens": tokens, "texts": "choices", "epochs": epochs}
        config = quick(recipe=Recipe("truth_weighted", 2.0), **changes)
        result = train(tiny_model, tiny_model_b, tmp_path / teacher, config, progress=events.append)
        adapters[teacher] = weights(result.path)
        stages[teacher] = [str(event) for event in events if "output layer sees" in str(event)]
    assert_same(adapters["cached"], adapters["live"], 1e-4)
    # A long training sees its teachers by their moments.
    assert [len(stages[teacher]) for teacher in ("cached", "live")] == [2 * (epochs == 3), 0]


@pytest.mark.parametrize(
    ("dtype", "teacher"), [("bfloat16", "cached"), ("float16", "cached"), ("bfloat16", "live")]
)
def test_half_precision_learns_the_same(adapter, tiny_model, tiny_model_b, tmp_path, dtype, teacher):
    exact, _ = adapter
    options = ModelOptions(device="cpu", dtype=dtype)
    result = train(tiny_model, tiny_model_b, tmp_path / "half", quick(teacher=teacher), options=options)
    expected, found = (
        [step["loss"] for step in json.loads((each.path / "adapter_report.json").read_text())["steps"]]
        for each in (exact, result)
    )
    assert found == pytest.approx(expected, abs=0.02)
    assert {each.dtype for each in weights(result.path).values()} == {torch.float32}


@pytest.mark.parametrize(("guard", "epochs"), [("none", 1), ("none", 2), ("right", 2)])
def test_teachers_of_known_weights_are_mixed_once(tiny_model, tiny_model_b, tmp_path, guard, epochs):
    results, stages = {}, {}
    for teacher in ("cached", "live"):
        events = []
        recipe = Recipe("average", 2.0, 0.3, guard)
        config = quick(recipe=recipe, teacher=teacher, epochs=epochs)
        results[teacher] = train(tiny_model, tiny_model_b, tmp_path / teacher, config, progress=events.append)
        stages[teacher] = [str(event) for event in events if "both models" in str(event)]
    assert_same(weights(results["cached"].path), weights(results["live"].path), 1e-4)
    for cached, live in zip(*(results[name].report["steps"] for name in ("cached", "live")), strict=True):
        assert cached == pytest.approx(live, abs=1e-4)
    assert [len(stages[teacher]) for teacher in ("cached", "live")] == [epochs == 2, 0]


@pytest.mark.parametrize(
    ("targets", "copies"), [(["q_proj"], 1), (["k_proj", "up_proj"], 1), ([], 1), (["q_proj", "lm_head"], 2)]
)
@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_two_adapters_share_one_base(tiny_model, tmp_path, monkeypatch, targets, copies, teacher):
    for name, seed in (("old", 2), ("new", 3)):
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            places = targets if name == "old" and targets else ["q_proj"]
            lora = LoraConfig(r=seed, lora_alpha=4, target_modules=places, init_lora_weights=False)
            get_peft_model(load(tiny_model), lora).save_pretrained(tmp_path / name)
    old = tmp_path / "old" if targets else tiny_model
    loaded = []
    loading = sides.load_model
    monkeypatch.setattr(sides, "load_model", lambda *a, **k: loaded.append(a[0].spec) or loading(*a, **k))
    config = quick(teacher=teacher, selection="validation_loss")
    shared = train(old, tmp_path / "new", tmp_path / "shared", config)
    assert loaded == [str(tmp_path / "new"), str(old)][:copies]
    monkeypatch.setattr("pytest_muscle.adapter.stages.shares_base", lambda *_: False)
    apart = train(old, tmp_path / "new", tmp_path / "apart", config)
    assert_same(weights(shared.path), weights(apart.path), 1e-4)
    assert shared.report["validation"]["old"] == apart.report["validation"]["old"]


def test_an_old_adapter_of_another_kind_has_a_base_of_its_own(tiny_model, tiny_model_b, tmp_path):
    for name, dora in (("plain", False), ("dora", True)):
        lora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=dora)
        with quiet():
            get_peft_model(load(tiny_model), lora).save_pretrained(tmp_path / name)
    plain, dora, other = map(
        resolve_checkpoint, (str(tmp_path / "plain"), str(tmp_path / "dora"), str(tiny_model_b))
    )
    assert shares_base(plain, plain)
    assert not shares_base(dora, plain)
    assert not shares_base(plain, other)


@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_parts_in_threads_teach_what_they_do_one_after_the_other(
    tiny_model, tiny_model_b, tmp_path, monkeypatch, set_threads, teacher
):
    monkeypatch.setattr(trainer, "_PART_TOKENS", 20)
    monkeypatch.setattr(trainer, "_PART_WIDTH", 1)
    busy = set()
    loss = trainer.token_loss

    def watched(*arguments, **named):
        busy.add(torch.get_num_threads())
        return loss(*arguments, **named)

    monkeypatch.setattr(trainer, "token_loss", watched)
    adapters = []
    for name, cores, each in (("alone", 1, 1), ("threads", 4, 2), ("again", 4, 2)):
        set_threads(cores)
        busy.clear()
        result = train(tiny_model, tiny_model_b, tmp_path / name, quick(teacher=teacher))
        adapters.append(weights(result.path))
        assert each in busy
    assert_same(adapters[1], adapters[2])
    assert_same(adapters[0], adapters[1], 1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_drawn_is_drawn_in_one_thread(tiny_model, dropout):
    model = build_student(load(tiny_model), quick(dropout=dropout)).model
    state = torch.get_rng_state()
    assert trainer.draws_numbers(model) == (dropout > 0)
    assert torch.equal(state, torch.get_rng_state())


def test_live_teachers_share_the_base_of_an_adapted_new_model(tiny_model, tiny_model_b, tmp_path):
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(2)
        lora = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(load(tiny_model_b), lora).save_pretrained(tmp_path / "new")
    adapters = {}
    for teacher in ("cached", "live"):
        result = train(tiny_model, tmp_path / "new", tmp_path / teacher, quick(teacher=teacher))
        assert "rank 2, the settings ask for 4" in result.notes[0]
        adapters[teacher] = weights(result.path)
    assert_same(adapters["cached"], adapters["live"], 1e-4)


def test_one_step_of_paper_is_a_plain_pytorch_step(tiny_model, tiny_model_b, tmp_path):
    """Eight texts are one step of the paper's settings: accumulated here, one batch below."""
    data = records(8, choices=False)
    changes = {"epochs": 1, "warmup_steps": 0.0, "validation_share": 0.0, "rank": 8, "alpha": 16.0}
    config = CompatibilityConfig.preset("paper", **changes)
    events = []
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter", config, data, progress=events.append)
    (step,) = [event for event in events if isinstance(event, Step)]

    from pytest_muscle.adapter.data import encode_cases
    from pytest_muscle.adapter.student import build_student
    from pytest_muscle.models.checkpoint import load_tokenizer, resolve_checkpoint
    from pytest_muscle.models.local.encoding import Encoder

    encoder = Encoder(load_tokenizer(resolve_checkpoint(str(tiny_model))), 10**9, None)
    texts = encode_cases(read_cases(data), encoder, config, 256).texts
    student = build_student(load(tiny_model_b), config).model
    old, new = load(tiny_model), load(tiny_model_b)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    total, count = torch.zeros(()), 0
    for text in texts:
        ids = torch.tensor([text.tokens])
        p_student = student(ids).logits[0, :-1]
        with torch.no_grad():
            p_old, p_new = old(ids).logits[0, :-1], new(ids).logits[0, :-1]
        wrong = p_student.argmax(-1) != ids[0, 1:]
        target = torch.where(wrong[:, None], p_old, p_new)
        total = total + torch.nn.functional.kl_div(
            (p_student / 2).log_softmax(-1), (target / 2).log_softmax(-1), log_target=True, reduction="sum"
        )
        count += len(wrong)
    (total / count).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    assert step.loss == pytest.approx(total.item() / count, abs=1e-5)
    saved = weights(result.path)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            mine = saved[name.replace(".default", "")]
            torch.testing.assert_close(mine, parameter.detach(), atol=1e-6, rtol=0)
    assert max(tensor.abs().max() for name, tensor in saved.items() if ".lora_B." in name) > 5e-5


def test_vocabularies_padded_to_different_sizes(tiny_model, tmp_path):
    size = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    padded = save_tiny_model(tmp_path / "padded", seed=4, vocab_size=size + 24)
    for old, new, name in ((tiny_model, padded, "larger"), (padded, tiny_model, "smaller")):
        result = train(old, new, tmp_path / name, quick(recipe=Recipe("truth_weighted"), epochs=1))
        assert all(torch.isfinite(tensor).all() for tensor in weights(result.path).values())


@pytest.mark.parametrize("spec", ["recorded:old.jsonl", "openai:gpt", "python:my:model", "lm-eval:samples"])
def test_models_without_weights_are_refused(tiny_model, tmp_path, spec):
    with pytest.raises(MuscleError, match=r"old model .* gives answers but no weights.* name a directory"):
        train(spec, tiny_model, tmp_path / "adapter")
    with pytest.raises(MuscleError, match="new model"):
        train(tiny_model, spec, tmp_path / "adapter")


def test_overlap_stops_before_any_training(tmp_path, tiny_model, tiny_model_b):
    golden = [GoldenCase("g", "golden.jsonl", "exact_match", ("1",), prompt=RECORDS[0]["prompt"], line=3)]
    with pytest.raises(MuscleError, match=r"\(r0\) repeats golden.jsonl:3 \(g\)"):
        train(tiny_model, tiny_model_b, tmp_path / "adapter", golden=golden)
    assert not list(tmp_path.iterdir())
    config = quick(epochs=1)
    assert train(tiny_model, tiny_model_b, tmp_path / "adapter", config, golden=golden, allow_overlap=True)


def test_a_loss_that_is_not_a_number_names_its_batch(tiny_model, tiny_model_b, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    config = quick(validation_share=0.0, recipe=Recipe("old_only"))
    with pytest.raises(MuscleError, match=r"loss became nan at step 1, .* training record:\d+ \(r"):
        train(broken, tiny_model_b, tmp_path / "adapter", config)
    assert not (tmp_path / "adapter").exists()


def test_a_full_disk_is_said(tiny_model, tiny_model_b, tmp_path, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MuscleError, match=r"the disk is full.*goes on from its last checkpoint"):
        train(tiny_model, tiny_model_b, tmp_path / "adapter")
    monkeypatch.undo()
    assert train(tiny_model, tiny_model_b, tmp_path / "adapter").path


def test_where_the_disk_has_no_room_the_teachers_stay_in_memory(
    tiny_model, tiny_model_b, tmp_path, monkeypatch
):
    expected = train(tiny_model, tiny_model_b, tmp_path / "live", quick(teacher="live"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter")
    notes = [note for note in result.notes if "0.0 GB are free" in note]
    assert len(notes) == 2
    assert "the old model stays in memory" in notes[0]
    assert "the new model is run at every step" in notes[1]
    assert_same(weights(result.path), weights(expected.path), 1e-4)


@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 6), (6.0, 6), (5.0, None), (0.0, None)])
def test_a_training_that_only_warms_up_is_noted(tiny_model, tiny_model_b, tmp_path, warmup, steps):
    events = []
    config = quick(warmup_steps=warmup, epochs=1, batch_size=18 if warmup == 0.05 else 3)
    train(tiny_model, tiny_model_b, tmp_path / "adapter", config, progress=events.append)
    notes = [str(event) for event in events if isinstance(event, Note) and "warm-up" in str(event)]
    assert len(notes) == (steps is not None)


def test_long_records_are_counted(tiny_model, tiny_model_b, tmp_path):
    data = [*RECORDS, {"id": "long", "prompt": "customer " * 400, "answer": "late"}]
    events = []
    result = train(tiny_model, tiny_model_b, tmp_path / "a", quick(epochs=1), data, progress=events.append)
    assert Note("1 training texts longer than 256 tokens were truncated") in events
    assert result.report["truncated"] == 1
    result = train(tiny_model, tiny_model_b, tmp_path / "b", quick(epochs=1, overlong="drop"), data)
    assert result.notes == ("1 training texts longer than 256 tokens were dropped",)


def test_the_recipe_is_chosen_by_short_runs(tiny_model, tiny_model_b, tmp_path):
    candidates = (Recipe("old_only"), Recipe(cross_entropy_weight=1.0), Recipe("student_wrong", 2.0))
    events = []
    config = quick(recipe="auto", candidates=candidates, pilot_share=0.5)
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter", config, progress=events.append)
    assert [pilot.recipe for pilot in result.pilots] == [str(recipe) for recipe in candidates]
    best = select_recipe([pilot.validation for pilot in result.pilots], result.new)
    assert result.recipe == str(candidates[best])
    assert sum(isinstance(event, Step) for event in events) == 3 * 5 + 10
    # Nothing of the pilots is left in what is trained to the end.
    alone = quick(recipe=candidates[best])
    assert_same(weights(result.path), weights(train(tiny_model, tiny_model_b, tmp_path / "one", alone).path))


def test_a_guard_lets_the_old_model_teach_only_what_it_answers_right(tiny_model, tiny_model_b, tmp_path):
    shares = {}
    for guard in ("none", "right", "flips", "groups"):
        config = quick(recipe=Recipe("old_only", guard=guard), epochs=1, batch_size=18, tokens="answer")
        result = train(tiny_model, tiny_model_b, tmp_path / guard, config)
        (shares[guard],) = (step["from_old"] for step in result.report["steps"])
    answers = compare(
        str(tiny_model), str(tiny_model), records_file(tmp_path), cache_dir=str(tmp_path / "kept")
    )
    right = {result.case.id for result in answers.results if result.new_grade.correct}
    trained, _ = split_cases(read_cases(RECORDS), quick().validation_share, quick().seed)
    encoder = Encoder(load_tokenizer(resolve_checkpoint(str(tiny_model))), 10**6, None)
    texts = encode_cases(trained, encoder, quick(tokens="answer"), 10**6).texts
    tokens = [len(text.counted(True)) for text in texts]
    taught = sum(n for n, text in zip(tokens, texts, strict=True) if trained[text.case].id in right)
    assert shares["none"] == 1
    assert 0 < shares["right"] < 1
    assert shares["right"] == pytest.approx(taught / sum(tokens))
    assert shares["flips"] < shares["right"]
    # Records without tags have no groups: nothing is held against the old model.
    assert shares["groups"] == 1


def records_file(folder):
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    return str(path)


def test_an_old_model_too_weak_is_noted(tiny_model, tiny_model_b, tmp_path, monkeypatch):
    asked = []

    def weak(cases, old, new):
        asked.append((len(cases), len(old), len(new)))
        return "too weak"

    monkeypatch.setattr("pytest_muscle.adapter.stages.too_weak", weak)
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter", quick(epochs=1))
    assert "too weak" in result.notes
    assert asked == [(6, 6, 6)]


def test_the_control_without_the_old_model_needs_none_of_it(tiny_model, tiny_model_b, tmp_path):
    recipe = Recipe("new_only", cross_entropy_weight=0.5)
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter", quick(recipe=recipe))
    assert all(step["from_old"] == 0 for step in result.report["steps"])
    assert result.report["steps"][-1]["loss"] < result.report["steps"][0]["loss"]


def test_without_validation_the_last_epoch_is_kept(tiny_model, tiny_model_b, tmp_path):
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter", quick(validation_share=0.0))
    assert result.kept == Validation(epoch=2)
    assert result.new is None
    assert result.path.is_dir()


def test_where_no_epoch_is_worth_keeping_none_is(tiny_model, tiny_model_b, tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_muscle.adapter.selection.is_eligible", lambda *_: False)
    result = train(tiny_model, tiny_model_b, tmp_path / "adapter")
    assert (result.path, result.kept) == (None, None)
    assert not (tmp_path / "adapter").exists()
    monkeypatch.undo()
    assert train(tiny_model, tiny_model_b, tmp_path / "adapter", progress=pytest.fail) == result


def test_a_task_adapter_learns_its_task(tiny_model, tmp_path):
    data = [{**record, "answer": "parcel"} for record in records(24, choices=False)]
    config = TaskConfig(batch_size=4, epochs=3, learning_rate=2e-2, validation_share=0.25)
    events = []
    result = train_task_adapter(str(tiny_model), data, tmp_path / "adapter", config, progress=events.append)
    first, *_, last = [event.loss for event in events if isinstance(event, Step)]
    assert last < first / 2
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert result.old is None
    assert result.kept.nfr is None
    assert result.recipe == "cross-entropy"
    assert "# Task adapter" in (result.path / "README.md").read_text()


def test_random_numbers_of_the_caller_are_left_alone(tiny_model, tiny_model_b, tmp_path):
    import random

    import numpy

    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    expected = (torch.rand(1), random.random(), numpy.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    train(tiny_model, tiny_model_b, tmp_path / "adapter", quick(epochs=1))
    assert (torch.rand(1), random.random(), numpy.random.rand()) == expected


def epoch(number, accuracy, nfr, loss=1.0):
    return Validation(accuracy, 0.02, nfr, loss, number)


def test_the_fewest_flips_at_the_new_models_accuracy():
    new = epoch(0, 0.60, 0.06)
    within, below, better = epoch(1, 0.585, 0.03), epoch(2, 0.57, 0.01), epoch(3, 0.62, 0.04)
    assert select_epoch([within, below, better], new, "nfr") is within
    assert select_epoch([below], new, "nfr") is None
    assert select_epoch([epoch(1, 0.7, 0.07)], new, "nfr") is None
    lower, later = epoch(4, 0.60, 0.03, 0.9), epoch(5, 0.60, 0.03, 0.9)
    assert select_epoch([within, lower, later], new, "nfr") is later
    assert select_epoch([within, better, lower], new, "accuracy") is better
    assert select_epoch([within, better, lower], new, "validation_loss") is lower


def test_the_best_pilot():
    new = epoch(0, 0.60, 0.06)
    pilots = [epoch(0, 0.50, 0.01), epoch(0, 0.59, 0.05, 9.0), epoch(0, 0.61, 0.05, 0.1)]
    assert select_recipe(pilots, new) == 2
    assert select_recipe(pilots[:2], new) == 1
    cheap, dear = epoch(0, 0.60, 0.05), epoch(0, 0.585, 0.04)
    assert select_recipe([dear, cheap], new) == 1
    assert select_recipe([epoch(0, 0.5, 0.03), epoch(0, 0.4, 0.02)], new) == 0
