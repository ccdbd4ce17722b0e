"""Records and settings small enough for a training of seconds."""

import random

from pytest_muscle.adapter.config import CompatibilityConfig, Recipe
from pytest_muscle.models.checkpoint import load_model, resolve_checkpoint

WORDS = [
    "apples",
    "parcel",
    "box",
    "bill",
    "customer",
    "late",
    "money",
    "order",
    "left",
    "paid",
    "twice",
    "back",
    "happy",
    "way",
]
QUICK = {
    "tokens": "all",
    "rank": 4,
    "alpha": 8.0,
    "batch_size": 4,
    "epochs": 2,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "validation_share": 0.25,
}


def records(count, seed=0, choices=True):
    """Questions with two choices and, every other one, with a text to answer."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt = "Question: " + " ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + "? Answer:"
        if choices and number % 2:
            answer = {"choices": draw.sample(WORDS, 2), "answer": draw.randint(0, 1)}
        else:
            answer = {"answer": draw.choice(WORDS), "max_new_tokens": 4}
        made.append({"id": f"r{number}", "prompt": prompt, **answer})
    return made


def quick(**changes):
    """Settings for a training of seconds, with changes."""
    return CompatibilityConfig(**{**QUICK, "recipe": Recipe("student_wrong"), **changes})


def load(path):
    """The model of a directory, in float32 on the CPU, frozen."""
    return load_model(resolve_checkpoint(str(path)), device="cpu").requires_grad_(False)
