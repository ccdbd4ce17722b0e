"""The student begins as the new model, whatever the ranks, and both share one base."""

import threading

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small import load, quick
from tiny import save_tiny_model

from pytest_muscle.adapter.heads import token_logits
from pytest_muscle.adapter.student import build_student
from pytest_muscle.errors import MuscleError
from pytest_muscle.models.local.output import find_output_layer
from pytest_muscle.models.quiet import quiet

TOKENS = torch.tensor([[1, 30, 41, 52, 63], [1, 35, 46, 57, 68]])
BATCH = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


def tuned(path, **changes):
    """The model with a LoRA adapter that does something."""
    config = {"r": 6, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        return get_peft_model(load(path), LoraConfig(**{**config, **changes}))


def trained_layers(student):
    return {name.split(".")[-4] for name, p in student.model.named_parameters() if p.requires_grad}


def disturb(student):
    """Train, in a way."""
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_" in name and ".default." in name:
                parameter.add_(0.3)


def test_without_an_adapter_it_begins_as_the_base(tiny_model):
    expected = logits(load(tiny_model))
    student = build_student(load(tiny_model), quick(rank=3))
    assert student.rank == 3
    torch.testing.assert_close(logits(student.model), expected, atol=1e-5, rtol=1e-5)
    disturb(student)
    assert (logits(student.model) - expected).abs().max() > 0.1
    student.reset()
    torch.testing.assert_close(logits(student.model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 6, 16])
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_with_a_task_adapter_it_begins_as_that_at_any_rank(tiny_model, rank, changes):
    new = tuned(tiny_model, **changes)
    expected, base = logits(new), logits(load(tiny_model))
    assert (expected - base).abs().max() > 0.1
    student = build_student(new, quick(rank=rank))
    torch.testing.assert_close(logits(student.model), expected, atol=1e-4, rtol=1e-4)
    assert student.rank == max(rank, 6)
    assert bool(student.notes) == (rank != 6 or "rank_pattern" in changes)
    # Every linear layer is trained, also those that the task adapter left alone.
    places = trained_layers(student)
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_new_ranks_can_learn(tiny_model):
    student = build_student(tuned(tiny_model), quick(rank=16))
    student.model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradients = [p.grad for name, p in student.model.named_parameters() if "q_proj.lora_B.default" in name]
    assert len(gradients) == 2
    assert all(gradient[:, 6:].abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("adapted", [True, False])
def test_the_start_stays_at_hand_as_a_teacher(tiny_model, adapted):
    new = tuned(tiny_model) if adapted else load(tiny_model)
    expected = logits(new)
    student = build_student(new, quick())
    student.keep_start()
    disturb(student)
    changed = logits(student.model)
    student.model.train()
    trained = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    with student.acting_as("new"):
        torch.testing.assert_close(logits(student.model), expected, atol=1e-4, rtol=1e-4)
    assert student.model.training
    assert [name for name, p in student.model.named_parameters() if p.requires_grad] == trained
    torch.testing.assert_close(logits(student.model), changed)


def test_saved_and_loaded_it_is_the_same(tiny_model, tmp_path):
    student = build_student(tuned(tiny_model), quick(rank=16))
    student.keep_start()
    disturb(student)
    expected = logits(student.model)
    with quiet():
        student.save(tmp_path / "adapter")
        assert not list((tmp_path / "adapter").glob("*/*"))
        loaded = PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected)
    student.reset()
    student.load_directory(tmp_path / "adapter")
    torch.testing.assert_close(logits(student.model), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)
def test_adapters_of_other_kinds_are_refused(tiny_model, changes, named):
    with pytest.raises(MuscleError, match=f"{named}.*merge"):
        build_student(tuned(tiny_model, **changes), quick())


def test_target_layers_can_be_chosen(tiny_model):
    student = build_student(load(tiny_model), quick(targets=("q_proj",)))
    assert trained_layers(student) == {"q_proj"}
    with pytest.raises(MuscleError, match=r"no linear layer 'query'; it has .*q_proj"):
        build_student(load(tiny_model), quick(targets=("query",)))


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_through_the_output_layer_are_the_logits(tmp_path, tied):
    model = load(save_tiny_model(tmp_path / "model", seed=3, tie_word_embeddings=tied))
    output = find_output_layer(model)
    counted = torch.tensor([[True, False, True, True], [False, True, True, False]])
    plain = token_logits(model, None, BATCH, counted, 200)
    fused = token_logits(model, output, BATCH, counted, 200)
    assert fused.states.shape == (5, 16)
    torch.testing.assert_close(fused.rows(slice(None)), plain.rows(slice(None)))
    torch.testing.assert_close(plain.rows(slice(0, 3)), logits(model)[0, [0, 2, 3], :200])
    assert model.get_output_embeddings() is output.layer


def test_the_last_thread_out_puts_the_output_layer_back(tiny_model):
    model = load(tiny_model)
    output = find_output_layer(model)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with output.removed():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with output.removed():
        thread.start()
        assert inside.wait(20)
    assert logits(model).shape[-1] == 16
    leave.set()
    thread.join()
    assert model.get_output_embeddings() is output.layer


def test_a_model_that_does_more_to_its_logits_is_noticed(tiny_model):
    model = load(tiny_model)
    forward = model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    model.forward = capped
    assert find_output_layer(model) is None
    model.forward = forward
    assert find_output_layer(model) is not None
    model.lm_head.weight.requires_grad_(True)
    assert find_output_layer(model) is None
