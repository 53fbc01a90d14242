"""The cloud's own forward pass against transformers' Llama, row by row and packed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cloud.deep_model import Chunk, DeepModel
from cloud.kv_cache import KvCache
from cloud.packed_linear import PackedLinear
from shared.errors import BundleError
from shared.model_bundle import ModelBundle
from tests.cloud_harness import full_model, tiny_bundle

FULL = full_model()
MODEL = DeepModel.load(tiny_bundle())
IDS = tuple((i * 37 + 11) % 250 for i in range(24))
# logits of the tiny model reach about 10; float32 sums in another order differ by far less
TOLERANCE = 2e-4


def rows_of(ids: tuple[int, ...], first_layer: int) -> torch.Tensor:
    """What a chunk of all ``ids`` holds: ids, or hidden states at the cut."""
    if first_layer == 0:
        return torch.tensor(ids)
    return torch.from_numpy(FULL.run(ids)[0])


def logits_in_pieces(ids: tuple[int, ...], first_layer: int, *sizes: int) -> torch.Tensor:
    """Logits of every position, computed in chunks of ``sizes`` and then one by one."""
    cache, rows = MODEL.new_cache(first_layer), rows_of(ids, first_layer)
    states = []
    for size in (*sizes, *[1] * (len(ids) - sum(sizes))):
        chunk = rows[cache.length : cache.length + size]
        states += MODEL.forward([Chunk(cache, chunk, tuple(range(size)))])
    return MODEL.logits(torch.cat(states))


@pytest.mark.parametrize("first_layer", [0, MODEL.cut])
@pytest.mark.parametrize("sizes", [(24,), (5, 1, 9), ()], ids=["at once", "pieces", "one by one"])
def test_logits_are_those_of_transformers(first_layer: int, sizes: tuple[int, ...]) -> None:
    _, wanted = FULL.run(IDS)
    got = logits_in_pieces(IDS, first_layer, *sizes)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), wanted, atol=TOLERANCE, rtol=0)
    assert (got.argmax(-1).numpy() == wanted.argmax(-1)).all()


def test_token_ids_give_what_the_split_at_the_cut_gives() -> None:
    by_ids = logits_in_pieces(IDS, 0, 10)
    by_hidden = logits_in_pieces(IDS, MODEL.cut, 7, 3)
    torch.testing.assert_close(by_ids, by_hidden, atol=TOLERANCE, rtol=0)


def test_packed_sessions_are_as_if_alone() -> None:
    """Prompts, pieces and single tokens of both kinds in one pass, in mixed order."""
    texts = [tuple((i * step + step) % 250 for i in range(step + 4)) for step in (3, 7, 11, 2, 19)]
    kinds = [0, MODEL.cut, 0, MODEL.cut, MODEL.cut]
    held = [0, 4, 14, 0, 22]
    chunks = []
    for text, first_layer, past in zip(texts, kinds, held, strict=True):
        cache, rows = MODEL.new_cache(first_layer), rows_of(text, first_layer)
        if past:
            MODEL.forward([Chunk(cache, rows[:past], ())])
        chunks.append(Chunk(cache, rows[past:], tuple(range(len(text) - past))))
    together = MODEL.forward(chunks)
    for text, past, chunk, states in zip(texts, held, chunks, together, strict=True):
        assert chunk.cache.length == len(text)
        wanted = FULL.run(text)[1][past:]
        np.testing.assert_allclose(MODEL.logits(states), wanted, atol=TOLERANCE, rtol=0)


def mixed_pass(model: DeepModel, texts: Sequence[tuple[int, ...]]) -> list[Chunk]:
    """Of each text all but some of its last tokens are held; of both kinds."""
    chunks = []
    for number, text in enumerate(texts):
        first_layer = MODEL.cut * (number % 2)
        cache, rows, past = model.new_cache(first_layer), rows_of(text, first_layer), len(text) // 2
        if past:
            model.forward([Chunk(cache, rows[:past], ())])
        chunks.append(Chunk(cache, rows[past:], tuple(range(len(text) - past))))
    return chunks


TEXTS = [tuple((i * step + step) % 250 for i in range(length))
         for step, length in ((3, 2), (7, 9), (11, 40), (2, 15), (19, 1), (5, 30))]  # fmt: skip


def test_attention_in_one_call_is_attention_session_by_session() -> None:
    """Few rows and many in one pass, so both ways are taken."""
    apart = DeepModel.load(tiny_bundle())
    apart.few_rows = 0
    together = MODEL.forward(mixed_pass(MODEL, TEXTS))
    for ours, theirs in zip(together, apart.forward(mixed_pass(apart, TEXTS)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_a_session_in_a_pass_of_many_is_as_if_alone_to_the_bit() -> None:
    together = MODEL.forward(mixed_pass(MODEL, TEXTS))
    for chunk, packed in zip(mixed_pass(MODEL, TEXTS), together, strict=True):
        (alone,) = MODEL.forward([chunk])
        assert torch.equal(alone, packed)


def test_only_the_wanted_rows_come_back() -> None:
    cache = MODEL.new_cache(0)
    (states,) = MODEL.forward([Chunk(cache, torch.tensor(IDS), (2, 23))])
    wanted = FULL.run(IDS)[1][[2, 23]]
    np.testing.assert_allclose(MODEL.logits(states), wanted, atol=TOLERANCE, rtol=0)


def test_a_cache_that_was_cut_off_goes_on_from_there() -> None:
    cache = MODEL.new_cache(0)
    MODEL.forward([Chunk(cache, torch.tensor(IDS), ())])
    cache.length = 10
    (states,) = MODEL.forward([Chunk(cache, torch.tensor([3, 4]), (1,))])
    wanted = FULL.run((*IDS[:10], 3, 4))[1][-1:]
    np.testing.assert_allclose(MODEL.logits(states), wanted, atol=TOLERANCE, rtol=0)


def test_caches_grow_and_keep_what_they_hold() -> None:
    ids = tuple(i % 250 for i in range(130))  # beyond 64 and 128
    got = logits_in_pieces(ids, 0, 60, 8, 60)
    np.testing.assert_allclose(got, FULL.run(ids)[1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("positions", [1, 64, 65, 200, 512])
def test_a_cache_takes_the_bytes_it_said(positions: int) -> None:
    cache = KvCache(MODEL.architecture, MODEL.cut, torch.device("cpu"), torch.float32)
    promised = cache.bytes_for(positions)
    cache.grow(positions)
    assert cache.data.nbytes == promised == cache.bytes_for(positions)
    assert positions <= cache.capacity <= 512


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    model = DeepModel.load(tiny_bundle(), dtype=dtype)
    (states,) = model.forward([Chunk(model.new_cache(0), torch.tensor(IDS), (23,))])
    logits = model.logits(states)[0]
    wanted = torch.from_numpy(FULL.run(IDS)[1][-1])
    assert logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(logits, wanted, dim=0) > 0.99


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 17])
def test_a_packed_linear_layer_is_a_linear_layer(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(48, 40, generator=generator)
    x = torch.randn(rows, 40, generator=generator)
    torch.testing.assert_close(PackedLinear(weight)(x), x @ weight.T, atol=1e-4, rtol=0)


def copied_bundle(folder: Path) -> ModelBundle:
    shutil.copytree(tiny_bundle().folder, folder / "bundle")
    return ModelBundle.load(folder / "bundle")


def test_a_bundle_without_a_cloud_half_is_refused() -> None:
    bundle = tiny_bundle()
    manifest = bundle.manifest.model_copy(update={"cloud": None})
    with pytest.raises(BundleError, match="no cloud half"):
        DeepModel.load(ModelBundle(bundle.folder, manifest))


def test_weights_that_are_missing_cut_short_or_damaged_are_refused(tmp_path: Path) -> None:
    bundle = copied_bundle(tmp_path)
    assert bundle.manifest.cloud
    path = bundle.folder / bundle.manifest.cloud.weights.path
    right = path.read_bytes()
    path.write_bytes(b"\xff" * len(right))
    with pytest.raises(BundleError, match="cannot be read"):
        DeepModel.load(bundle)
    path.write_bytes(right[:-1])
    with pytest.raises(BundleError, match="bytes"):
        DeepModel.load(bundle)
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        DeepModel.load(bundle)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    bundle = copied_bundle(tmp_path)
    assert bundle.manifest.cloud
    weights = bundle.manifest.cloud.weights
    path = bundle.folder / weights.path
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    entry = weights.model_copy(update={"size_bytes": path.stat().st_size})
    cloud = bundle.manifest.cloud.model_copy(update={"weights": entry})
    manifest = bundle.manifest.model_copy(update={"cloud": cloud})
    with pytest.raises(BundleError, match=r"model\.norm\.weight"):
        DeepModel.load(ModelBundle(bundle.folder, manifest))
