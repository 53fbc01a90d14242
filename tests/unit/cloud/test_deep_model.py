"""The cloud's model against transformers: the same numbers, however the rows are packed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud.deep_model import Chunk, DeepModel
from cloud.kv_cache import KvCache
from cloud.packed_linear import PackedLinear
from shared.errors import BundleError
from shared.model_bundle import ModelBundle
from tests.cloud_harness import full_model, tiny_bundle

MODEL = DeepModel.load(tiny_bundle())
CUT = MODEL.cut
FULL = full_model()
RNG = np.random.default_rng(8)


def some_ids(count: int) -> list[int]:
    return [int(token) for token in RNG.integers(2, 260, count)]


def chunk_of(cache: KvCache, ids: list[int]) -> Chunk:
    return Chunk(cache, torch.tensor(ids), tuple(range(len(ids))))


def run(cache: KvCache, rows: Tensor) -> Tensor:
    """Logits of all rows, computed in a pass of their own."""
    (states,) = MODEL.forward([Chunk(cache, rows, tuple(range(len(rows))))])
    return MODEL.logits(states)


def close(got: Tensor, wanted: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5, 40, 130])
def test_a_prompt_gives_transformers_logits(count: int) -> None:
    ids = some_ids(count)
    close(run(MODEL.new_cache(0), torch.tensor(ids)), FULL.run(ids)[1])


@pytest.mark.parametrize("pieces", [(1,) * 12, (3, 1, 8), (11, 1), (1, 11), (64, 1, 65)])
def test_a_prompt_in_pieces_gives_the_same(pieces: tuple[int, ...]) -> None:
    ids = some_ids(sum(pieces))
    cache = MODEL.new_cache(0)
    got = [
        run(cache, torch.from_numpy(part))
        for part in np.split(np.array(ids), np.cumsum(pieces)[:-1])
    ]
    assert cache.length == len(ids)
    close(torch.cat(got), FULL.run(ids)[1])


def test_greedy_text_is_transformers_own() -> None:
    prompt = some_ids(9)
    cache, rows, text = MODEL.new_cache(0), torch.tensor(prompt), list[int]()
    for _ in range(40):
        text.append(int(run(cache, rows)[-1].argmax()))
        rows = torch.tensor(text[-1:])
    assert text == FULL.continuation(prompt, 40)


def test_hidden_states_at_the_cut_equal_token_ids() -> None:
    ids = some_ids(20)
    hidden, logits = FULL.run(ids)
    cache = MODEL.new_cache(CUT)
    rows = torch.from_numpy(hidden)
    close(torch.cat([run(cache, rows[:15]), run(cache, rows[15:])]), logits)
    assert cache.data.shape[0] == MODEL.architecture.layers - CUT


def test_packed_sessions_equal_each_by_itself() -> None:
    texts = [some_ids(count) for count in (1, 7, 3, 12, 1, 5)]
    chunks, wanted = [], []
    for index, ids in enumerate(texts):
        hidden, logits = FULL.run(ids)
        from_cut, past = index % 2 == 1, len(ids) // 2
        cache = MODEL.new_cache(CUT if from_cut else 0)
        rows = torch.from_numpy(hidden) if from_cut else torch.tensor(ids)
        if past:
            run(cache, rows[:past])
        offsets = tuple(range(0, len(ids) - past, 2))
        chunks.append(Chunk(cache, rows[past:], offsets))
        wanted.append(logits[past::2])
    for states, logits, chunk, ids in zip(
        MODEL.forward(chunks), wanted, chunks, texts, strict=True
    ):
        close(MODEL.logits(states), logits)
        assert chunk.cache.length == len(ids)


def test_a_chunk_may_ask_for_nothing() -> None:
    ids = some_ids(6)
    quiet, loud = MODEL.new_cache(0), MODEL.new_cache(0)
    states = MODEL.forward([Chunk(quiet, torch.tensor(ids[:4]), ()), chunk_of(loud, ids)])
    assert states[0].shape == (0, MODEL.architecture.hidden_size)
    (nothing,) = MODEL.forward([Chunk(MODEL.new_cache(0), torch.tensor(ids), ())])
    assert len(nothing) == 0
    close(run(quiet, torch.tensor(ids[4:])), FULL.run(ids)[1][4:])


def test_a_cache_that_is_cut_off_takes_another_turn() -> None:
    ids, other = some_ids(10), some_ids(4)
    cache = MODEL.new_cache(0)
    run(cache, torch.tensor(ids))
    cache.length = 6
    close(run(cache, torch.tensor(other)), FULL.run(ids[:6] + other)[1][6:])


def test_a_pass_that_fails_leaves_the_cache_as_it_was() -> None:
    ids = some_ids(5)
    cache = MODEL.new_cache(0)
    run(cache, torch.tensor(ids[:3]))
    with pytest.raises((IndexError, RuntimeError)):
        run(cache, torch.tensor([MODEL.architecture.vocabulary_size]))
    assert cache.length == 3
    close(run(cache, torch.tensor(ids[3:])), FULL.run(ids)[1][3:])


def test_a_cache_counts_its_bytes_before_it_allocates_them() -> None:
    cache = MODEL.new_cache(CUT)
    for positions in (1, 64, 65, 200, 400, 512):
        needed = cache.bytes_for(positions)
        cache.grow(positions)
        assert cache.data.nbytes == needed
        assert cache.capacity >= positions
    assert cache.capacity == MODEL.architecture.max_positions


def test_half_precision_is_near() -> None:
    ids = some_ids(12)
    half = DeepModel.load(tiny_bundle(), dtype=torch.bfloat16)
    (states,) = half.forward([chunk_of(half.new_cache(0), ids)])
    logits = half.logits(states)
    assert logits.dtype is torch.float32
    wanted = FULL.run(ids)[1]
    assert np.abs(logits.numpy() - wanted).mean() < 0.05 * np.abs(wanted).mean() + 0.1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 33])
def test_packed_linear_is_a_linear_layer(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(50, 70, generator=generator)
    x = torch.randn(rows, 70, generator=generator)
    torch.testing.assert_close(PackedLinear(weight)(x), x @ weight.T)


def test_a_bundle_without_a_cloud_half_is_refused() -> None:
    bundle = tiny_bundle()
    manifest = bundle.manifest.model_copy(update={"cloud": None})
    with pytest.raises(BundleError, match="no cloud half"):
        DeepModel.load(ModelBundle(bundle.folder, manifest))


@pytest.mark.parametrize("damage", ["noise", "empty header"])
def test_damaged_weights_are_a_bundle_error(tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(tiny_bundle().folder, tmp_path / "bundle")
    path = folder / "cloud" / "model.safetensors"
    size = path.stat().st_size
    header = b"{}" if damage == "empty header" else b"xx"
    path.write_bytes((len(header).to_bytes(8, "little") + header).ljust(size, b"\x00"))
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        DeepModel.load(ModelBundle.load(folder))
