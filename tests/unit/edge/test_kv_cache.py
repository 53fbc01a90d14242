"""The edge's buffers: sizes, forgetting, and rotary tables that equal the cloud's."""

from __future__ import annotations

import numpy as np

from cloud.llama_block import Rotary
from edge.kv_cache import KvCache, RotaryTables
from prepare.tiny_model import TINY_ARCHITECTURE
from shared.model_bundle import Architecture

SMOLLM2 = Architecture(
    layers=30,
    hidden_size=576,
    heads=9,
    kv_heads=3,
    head_size=64,
    intermediate_size=1536,
    vocabulary_size=49152,
    max_positions=8192,
    rope_theta=100_000.0,
    norm_epsilon=1e-5,
)


def test_a_layer_is_one_contiguous_buffer_for_the_operator() -> None:
    cache = KvCache(3, TINY_ARCHITECTURE, max_positions=20)
    assert cache.keys.shape == cache.values.shape == (3, 1, 2, 20, 16)
    assert cache.keys[1].flags.c_contiguous


def test_bytes_per_position_count_keys_and_values_of_all_layers() -> None:
    assert KvCache(10, SMOLLM2, 4).bytes_per_position == 10 * 2 * 3 * 64 * 4


def test_truncate_forgets_and_never_invents() -> None:
    cache = KvCache(1, TINY_ARCHITECTURE, max_positions=20)
    cache.length = 7
    cache.truncate(9)
    assert cache.length == 7
    cache.truncate(3)
    assert cache.length == 3


def test_rotary_tables_equal_the_clouds() -> None:
    for arch in (TINY_ARCHITECTURE, SMOLLM2):
        ours, theirs = RotaryTables(arch, arch.max_positions), Rotary(arch)
        half = arch.head_size // 2
        # float32 angles of thousands of radians: both sides must round alike at every step
        np.testing.assert_allclose(ours.cos, theirs.cos[:, :half].numpy(), atol=1e-3)
        np.testing.assert_allclose(ours.sin[:512], theirs.sin[:512, :half].numpy(), atol=5e-5)
