"""A tiny model with seeded random weights: the whole pipeline in seconds, for tests.

Its text is noise, its arithmetic is the real thing: the same export, the same graphs, the same
cloud.  Weights are scaled so that logits spread enough for greedy choices to be unambiguous.
"""

from __future__ import annotations

import hashlib

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prepare.base_model import EMBEDDING, FINAL_NORM, BaseModel, FloatArray, layer_names
from shared.model_bundle import Architecture, Source

TINY_ARCHITECTURE = Architecture(
    layers=6,
    hidden_size=64,
    heads=4,
    kv_heads=2,
    head_size=16,
    intermediate_size=96,
    vocabulary_size=272,
    max_positions=512,
    rope_theta=10_000.0,
    norm_epsilon=1e-5,
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(seed: int = 0, architecture: Architecture = TINY_ARCHITECTURE) -> BaseModel:
    """A :class:`BaseModel` whose weights depend on ``seed`` alone."""
    rng = np.random.default_rng(seed)
    arch = architecture

    def matrix(rows: int, columns: int, gain: float = 1.0) -> FloatArray:
        values = rng.standard_normal((rows, columns)) * gain / columns**0.5
        return np.asarray(values, np.float32)

    weights = {
        EMBEDDING: matrix(arch.vocabulary_size, arch.hidden_size, gain=2.0),
        FINAL_NORM: (1 + 0.1 * rng.standard_normal(arch.hidden_size)).astype(np.float32),
    }
    query_size = arch.heads * arch.head_size
    for layer in range(arch.layers):
        names = layer_names(layer)
        weights[names["input_norm"]] = np.ones(arch.hidden_size, np.float32)
        weights[names["post_norm"]] = np.ones(arch.hidden_size, np.float32)
        weights[names["q"]] = matrix(query_size, arch.hidden_size, gain=2.0)
        weights[names["k"]] = matrix(arch.kv_size, arch.hidden_size, gain=2.0)
        weights[names["v"]] = matrix(arch.kv_size, arch.hidden_size)
        weights[names["o"]] = matrix(arch.hidden_size, query_size)
        weights[names["gate"]] = matrix(arch.intermediate_size, arch.hidden_size)
        weights[names["up"]] = matrix(arch.intermediate_size, arch.hidden_size)
        weights[names["down"]] = matrix(arch.hidden_size, arch.intermediate_size)
    digest = hashlib.sha256(b"".join(weights[key].tobytes() for key in sorted(weights)))
    return BaseModel(
        name=f"tiny-{seed}",
        architecture=arch,
        weights=weights,
        tokenizer=_byte_tokenizer(arch.vocabulary_size),
        chat_template=_CHAT_TEMPLATE,
        stop_token_ids=(1,),
        source=Source(
            description=f"seeded random weights (seed {seed})",
            license="apache-2.0",
            sha256=digest.hexdigest(),
        ),
    )


def _byte_tokenizer(vocabulary_size: int) -> Tokenizer:
    """One token per byte behind a few special tokens; ids fill ``vocabulary_size``."""
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    padding = [f"<|unused{i}|>" for i in range(vocabulary_size - len(special) - len(alphabet))]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, *padding])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in [*special, *padding]]
    )
    return tokenizer
