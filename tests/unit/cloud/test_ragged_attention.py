"""The kernel for a few rows of many sessions against PyTorch's own attention, and against itself
cut and packed in other ways."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from numba.core import caching
from torch import Tensor
from torch.nn import functional as F

from cloud import ragged_attention
from cloud.deep_model import Chunk, DeepModel
from cloud.kv_cache import KvCache
from cloud.ragged_attention import RaggedAttention
from shared.model_bundle import Architecture
from tests.cloud_harness import tiny_bundle

TINY = tiny_bundle().manifest.architecture
# more heads to a key, heads of another size, and a length that fills no vector
WIDE = TINY.model_copy(
    update={"heads": 9, "kv_heads": 3, "head_size": 40, "hidden_size": 360, "max_positions": 333}
)
ARCHITECTURES = pytest.mark.parametrize("arch", [TINY, WIDE], ids=["tiny", "wide"])
LAYER = 2


def held(arch: Architecture, past: int, seed: int, first_layer: int = 1) -> KvCache:
    """A cache of ``past`` positions; what lies beyond them is not a number."""
    cache = KvCache(arch, first_layer, torch.device("cpu"), torch.float32)
    cache.grow(past + 8)
    cache.data.fill_(torch.nan)
    generator = torch.Generator().manual_seed(seed)
    kept = cache.data[:, :, :, :past]
    kept.copy_(torch.randn(kept.shape, generator=generator))
    cache.length = past
    return cache


def rows(arch: Architecture, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys, and all projections, of ``count`` rows."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shape = (count, arch.heads + 2 * arch.kv_heads, arch.head_size)
    projected = torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)[:, : arch.heads + arch.kv_heads], projected


def attended(
    arch: Architecture, pieces: list[tuple[KvCache, Tensor, Tensor]], layer: int = LAYER
) -> list[Tensor]:
    """One call over ``pieces``; their caches move on."""
    attention = RaggedAttention(arch)
    turned = torch.cat([piece[1] for piece in pieces]).contiguous()
    projected = torch.cat([piece[2] for piece in pieces])
    out = torch.full((len(turned), arch.heads, arch.head_size), torch.nan)
    new, at = [], 0
    for cache, own, _ in pieces:
        new.append((cache, at, at + len(own)))
        at += len(own)
    attention(attention.chunks(new), layer, turned, projected, out)
    for cache, own, _ in pieces:
        cache.length += len(own)
    return [out[first:stop] for _, first, stop in new]


def by_torch(arch: Architecture, cache: KvCache, turned: Tensor, projected: Tensor) -> Tensor:
    past, count = cache.length, len(turned)
    keys, values = cache.append(
        LAYER, past, turned[:, arch.heads :], projected[:, arch.heads + arch.kv_heads :]
    )
    out = F.scaled_dot_product_attention(
        turned[:, : arch.heads].transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=torch.ones((count, past + count), dtype=torch.bool).tril_(past),
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def attends_as_pytorch_does(arch: Architecture, past: int, count: int) -> None:
    turned, projected = rows(arch, count, past)
    wanted = by_torch(arch, held(arch, past, past), turned, projected)
    (got,) = attended(arch, [(held(arch, past, past), turned, projected)])
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-5)


@ARCHITECTURES
@pytest.mark.parametrize(("past", "count"), [(0, 1), (0, 3), (1, 1), (7, 5), (64, 2), (301, 1)])
def test_it_is_pytorchs_attention(arch: Architecture, past: int, count: int) -> None:
    attends_as_pytorch_does(arch, past, count)


@ARCHITECTURES
def test_new_keys_and_values_are_where_pytorch_would_put_them(arch: Architecture) -> None:
    turned, projected = rows(arch, 3, 0)
    wanted, got = held(arch, 20, 1), held(arch, 20, 1)
    by_torch(arch, wanted, turned, projected)
    attended(arch, [(got, turned, projected)])
    assert torch.equal(got.data.nan_to_num(9e9), wanted.data.nan_to_num(9e9))


@ARCHITECTURES
def test_sessions_packed_are_as_if_alone_to_the_bit(arch: Architecture) -> None:
    shapes = [(0, 2), (250, 1), (17, 4), (64, 1), (3, 8), (128, 1)]
    kinds = [0, 1, 2, 1, 0, 1]  # sessions of token ids have caches of more layers

    def pieces() -> list[tuple[KvCache, Tensor, Tensor]]:
        return [
            (held(arch, past, seed, kinds[seed]), *rows(arch, count, seed))
            for seed, (past, count) in enumerate(shapes)
        ]

    together = attended(arch, pieces())
    for alone, packed in zip(pieces(), together, strict=True):
        assert torch.equal(attended(arch, [alone])[0], packed)


@ARCHITECTURES
def test_a_run_is_its_rows_one_by_one_to_the_bit(arch: Architecture) -> None:
    turned, projected = rows(arch, 8, 5)
    (run,) = attended(arch, [(held(arch, 100, 5), turned, projected)])
    cache = held(arch, 100, 5)
    for row in range(8):
        at = slice(row, row + 1)
        (one,) = attended(arch, [(cache, turned[at], projected[at])])
        assert torch.equal(one[0], run[row])


def test_a_cache_that_grew_attends_as_before_to_the_bit() -> None:
    turned, projected = rows(TINY, 1, 6)
    (before,) = attended(TINY, [(held(TINY, 60, 6), turned, projected)])
    cache = held(TINY, 60, 6)
    cache.grow(300)
    (after,) = attended(TINY, [(cache, turned, projected)])
    assert torch.equal(before, after)


def test_scores_far_apart_do_not_overflow() -> None:
    turned, projected = rows(TINY, 1, 7)
    turned = turned * 300  # scores of some 10,000 and -10,000
    wanted = by_torch(TINY, held(TINY, 50, 7), turned, projected)
    (got,) = attended(TINY, [(held(TINY, 50, 7), turned, projected)])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_what_is_not_a_number_stays_with_its_session() -> None:
    pieces = [(held(TINY, 30, seed), *rows(TINY, 1, seed)) for seed in range(3)]
    wanted = attended(TINY, [(held(TINY, 30, 2), *rows(TINY, 1, 2))])[0]
    pieces[1][1].fill_(torch.nan)
    pieces[0][2].fill_(torch.inf)
    got = attended(TINY, pieces)
    assert not got[0].isfinite().any()
    assert got[1].isnan().all()
    assert torch.equal(got[2], wanted)


def test_it_is_compiled_before_the_first_row_comes() -> None:
    kernel: Any = ragged_attention._compiled(TINY.heads // TINY.kv_heads, TINY.head_size, kept=True)
    RaggedAttention(TINY)
    assert len(kernel.signatures) == 1
    model = DeepModel.load(tiny_bundle())
    caches = [model.new_cache(0) for _ in range(6)]
    for counts in ([1], [3], [4], [8], [1, 8, 2, 20, 5, 1]):
        model.forward(
            [
                Chunk(cache, torch.arange(count), (count - 1,))
                for cache, count in zip(caches, counts, strict=False)
            ]
        )
    assert len(kernel.signatures) == 1


@pytest.mark.parametrize(("past", "count"), [(330, 4), (0, 65)])
def test_rows_beyond_the_cache_or_the_model_are_never_written(past: int, count: int) -> None:
    cache = held(WIDE, past, 1)
    with pytest.raises(AssertionError):
        RaggedAttention(WIDE).chunks([(cache, 0, count)])


def it_attends_compiled_anew() -> None:
    ragged_attention._compiled.cache_clear()
    try:
        attends_as_pytorch_does(TINY, 9, 2)
    finally:
        ragged_attention._compiled.cache_clear()


def test_a_disk_that_is_full_costs_no_more_than_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(caching.FunctionCache, "save_overload", full)
    monkeypatch.setattr(caching.FunctionCache, "load_overload", lambda *arguments: None)
    it_attends_compiled_anew()


def test_a_kept_kernel_that_was_half_written_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    it_attends_compiled_anew()
    kept = [path for path in tmp_path.rglob("*") if path.suffix in {".nbi", ".nbc"}]
    assert len(kept) >= 2
    for path in kept:
        path.write_bytes(b"")
    it_attends_compiled_anew()


def test_it_is_compiled_without_a_place_to_keep_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose root cannot be written to."""
    njit = numba.njit

    def nowhere(*arguments: Any, cache: bool = False, **options: Any) -> Callable[..., Any]:
        if cache:
            raise RuntimeError("cannot cache function 'attend': no locator available")
        return njit(*arguments, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(numba, "njit", nowhere)
    it_attends_compiled_anew()
