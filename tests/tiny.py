"""Tiny real checkpoints: random weights, and a tokenizer trained on a few lines."""

from pathlib import Path

LINES = [
    "The customer asks where the parcel is. Answer: it is on its way.",
    "Question: how many apples are left? Answer: 12 apples are left in the box.",
    "Grüße aus Köln! The bill was paid twice; please give the money back.",
    "Summary: the order came late, and the customer was not happy about it.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny_model(directory: Path, *, seed: int, **changes: object) -> Path:
    """Save a tiny Llama with random weights; ``changes`` go into its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    settings: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_other_model(directory: Path, kind: str) -> Path:
    """Save a tiny model of another architecture: attention windows, learned positions or recurrent.

    The window is shorter than a few words, or longer than all that a test asks (``long window``).
    """
    import torch
    import transformers

    from pytest_muscle.models.quiet import quiet

    size = len(tiny_tokenizer())
    common = {"vocab_size": size, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 1}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "window": lambda: transformers.MistralConfig(
            **common, **small, num_key_value_heads=2, sliding_window=6, max_position_embeddings=256
        ),
        "long window": lambda: transformers.MistralConfig(
            **common, **small, num_key_value_heads=2, sliding_window=200, max_position_embeddings=256
        ),
        "gpt2": lambda: transformers.GPT2Config(**common, n_embd=16, n_layer=2, n_head=4, n_positions=256),
        "mamba": lambda: transformers.MambaConfig(
            **common, hidden_size=16, num_hidden_layers=2, state_size=4
        ),
    }[kind]()
    if kind == "mamba":
        config.max_position_embeddings = 256
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
    return directory


def tiny_tokenizer():
    """A byte-level BPE tokenizer of some 300 tokens that has no padding token of its own."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        LINES,
        vocab_size=320,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<|begin|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
