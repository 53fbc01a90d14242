"""The full model on the cloud: one forward pass over the packed rows of many sessions.

Linear layers and norms run over all rows at once; attention goes over each session's own KV cache.
A session gives either hidden states at the cut, and the deeper layers run, or token ids, and all
layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cloud.kv_cache import KvCache
from cloud.llama_block import Rotary
from cloud.packed_linear import PackedLinear
from cloud.ragged_attention import FEW_ROWS, RaggedAttention
from shared.errors import BundleError
from shared.model_bundle import Architecture, ModelBundle


@dataclass(frozen=True)
class Chunk:
    """New rows of one session.

    Attributes:
        cache: the session's; ``cache.length`` is the first new position.
        rows: hidden states at the cut ``[n, hidden]`` in the model's dtype where the cache begins
            at the cut, token ids ``[n]`` int64 where it begins at layer 0; n is 1 or more.
        wanted: rising offsets into ``rows`` of those whose final hidden state is asked for.
    """

    cache: KvCache
    rows: Tensor
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    qkv: PackedLinear
    o: PackedLinear
    post_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class _Span:
    """Where a chunk's rows lie among the packed rows, and how they see the past."""

    chunk: Chunk
    first: int
    stop: int
    mask: Tensor | None  # [n, past + n] bool; None where every row sees everything or all is new
    ragged: bool  # attends together with those of other sessions


class DeepModel:
    """Weights of the full model on one device.  Not thread-safe: one worker thread owns it."""

    def __init__(
        self,
        arch: Architecture,
        cut: int,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.architecture, self.cut = arch, cut
        self.device, self.dtype = device, dtype

        def tensor(name: str) -> Tensor:
            return weights[f"model.{name}.weight"].to(device, dtype)

        def linear(*names: str) -> PackedLinear:
            return PackedLinear(torch.cat([tensor(name) for name in names]))

        self._embedding = tensor("embed_tokens")
        self._layers = [
            _Layer(
                input_norm=tensor(f"{at}.input_layernorm"),
                qkv=linear(*(f"{at}.self_attn.{part}_proj" for part in "qkv")),
                o=linear(f"{at}.self_attn.o_proj"),
                post_norm=tensor(f"{at}.post_attention_layernorm"),
                gate_up=linear(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
                down=linear(f"{at}.mlp.down_proj"),
            )
            for at in (f"layers.{index}" for index in range(arch.layers))
        ]
        self._final_norm = tensor("norm")
        self._head = PackedLinear(self._embedding)
        self._rotary = Rotary(arch, device)
        self._ragged = (
            RaggedAttention(arch) if device.type == "cpu" and dtype is torch.float32 else None
        )
        # chunks of more rows attend by themselves; 0: all do
        self.few_rows = FEW_ROWS if self._ragged else 0
        half = arch.head_size // 2
        # rotate_half(x) * sin == roll(x, half) * (sin with its first half negated)
        self._rotary.sin[:, :half] *= -1

    @classmethod
    def load(
        cls,
        bundle: ModelBundle,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Read the bundle's cloud half; raise :class:`BundleError` where it cannot be."""
        manifest = bundle.manifest
        if manifest.cloud is None:
            raise BundleError(f"the bundle at {bundle.folder} has no cloud half")
        path = bundle.path(manifest.cloud.weights)
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{path} cannot be read: {error}; run `tandem prepare`") from None
        try:
            return cls(manifest.architecture, manifest.cut, weights, torch.device(device), dtype)
        except KeyError as error:
            raise BundleError(f"{path} has no tensor {error}; run `tandem prepare`") from None

    def new_cache(self, first_layer: int) -> KvCache:
        """An empty cache; ``first_layer`` is the cut, or 0 for a session of token ids."""
        assert first_layer in (0, self.cut)
        return KvCache(self.architecture, first_layer, self.device, self.dtype)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run new rows of different sessions in one pass and store their keys and values.

        Returns:
            For each chunk ``[len(wanted), hidden]``: final hidden states, before the final norm.
        """
        for chunk in chunks:
            chunk.cache.grow(chunk.cache.length + len(chunk.rows))
        # sessions of token ids first: the lower layers run over the front of the packed rows
        order = sorted(chunks, key=lambda chunk: chunk.cache.first_layer)
        spans = self._spans(order)
        from_ids = [span for span in spans if span.chunk.cache.first_layer == 0]
        from_cut = [span for span in spans if span.chunk.cache.first_layer != 0]
        hidden = torch.empty((0, self.architecture.hidden_size), device=self.device)
        if from_ids:
            ids = torch.cat([span.chunk.rows for span in from_ids])
            hidden = self._run(0, self.cut, F.embedding(ids, self._embedding), from_ids)
        if from_cut:
            joined = [span.chunk.rows for span in from_cut]
            hidden = torch.cat([hidden, *joined] if from_ids else joined)
        hidden = self._run(self.cut, self.architecture.layers, hidden, spans)
        results: dict[int, Tensor] = {}
        at = 0
        for span in spans:
            chunk = span.chunk
            chunk.cache.length += len(chunk.rows)
            results[id(chunk)] = hidden[at : at + len(chunk.wanted)]
            at += len(chunk.wanted)
        return [results[id(chunk)] for chunk in chunks]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states ``[n, hidden]`` → ``[n, vocabulary]`` float32 on the CPU."""
        return self._head(self._norm(hidden, self._final_norm)).float().cpu()

    def _spans(self, chunks: Sequence[Chunk]) -> list[_Span]:
        spans, at = [], 0
        for chunk in chunks:
            count, past = len(chunk.rows), chunk.cache.length
            ragged = count <= self.few_rows
            mask = None
            if count > 1 and past and not ragged:
                mask = torch.ones((count, past + count), dtype=torch.bool, device=self.device)
                mask.tril_(past)
            spans.append(_Span(chunk, at, at + count, mask, ragged))
            at += count
        return spans

    def _run(self, first: int, last: int, hidden: Tensor, spans: Sequence[_Span]) -> Tensor:
        """Layers ``[first, last)``.  In the model's last layer only the wanted rows go on beyond
        the keys and values."""
        arch = self.architecture
        kv_stop = arch.heads + arch.kv_heads
        positions = torch.cat(
            [
                torch.arange(s.chunk.cache.length, s.chunk.cache.length + s.stop - s.first)
                for s in spans
            ]
        ).to(self.device)
        cos, sin = self._rotary.at(positions, self.dtype)
        half = arch.head_size // 2
        attend = self._attention(spans)
        for index in range(first, last):
            layer = self._layers[index]
            heads = layer.qkv(self._norm(hidden, layer.input_norm)).view(
                len(hidden), -1, arch.head_size
            )
            turned = heads[:, :kv_stop]
            turned = (turned * cos).addcmul_(turned.roll(half, -1), sin)
            mixed = attend(index, turned, heads)
            if index == arch.layers - 1:
                rows = torch.tensor(
                    [span.first + offset for span in spans for offset in span.chunk.wanted],
                    dtype=torch.int64,
                    device=self.device,
                )
                hidden, mixed = hidden[rows], mixed[rows]
                if not len(rows):
                    return hidden
            hidden = hidden + layer.o(mixed.flatten(-2))
            gate, up = layer.gate_up(self._norm(hidden, layer.post_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        return hidden

    def _attention(self, spans: Sequence[_Span]) -> Callable[[int, Tensor, Tensor], Tensor]:
        """A pass's attention: layer, rotated queries and keys ``[rows, heads + kv_heads,
        head_size]`` and all three projections → ``[rows, heads, head_size]``."""
        arch = self.architecture
        kv_stop = arch.heads + arch.kv_heads
        together = [(s.chunk.cache, s.first, s.stop) for s in spans if s.ragged]
        assert self._ragged or not together
        chunks = self._ragged.chunks(together) if self._ragged and together else None

        def attend(layer: int, turned: Tensor, projected: Tensor) -> Tensor:
            out = projected.new_empty((len(projected), arch.heads, arch.head_size))
            if chunks is not None:
                assert self._ragged
                self._ragged(chunks, layer, turned, projected, out)
            for span in spans:
                if not span.ragged:
                    queries, keys = turned[:, : arch.heads], turned[:, arch.heads :]
                    values = projected[:, kv_stop:]
                    out[span.first : span.stop] = _attend(span, layer, queries, keys, values)
            return out

        return attend

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm, computed in float32 (as transformers does)."""
        epsilon = self.architecture.norm_epsilon
        if hidden.dtype is torch.float32:
            return F.rms_norm(hidden, weight.shape, weight, epsilon)
        return weight * F.rms_norm(hidden.float(), weight.shape, None, epsilon).to(hidden.dtype)


def _attend(span: _Span, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of a chunk's rows (``[rows, heads, head_size]``, of all packed rows)."""
    first, stop = span.first, span.stop
    cache = span.chunk.cache
    past = cache.length
    all_keys, all_values = cache.append(layer, past, keys[first:stop], values[first:stop])
    out = F.scaled_dot_product_attention(
        queries[first:stop].transpose(0, 1)[None],
        all_keys[None],
        all_values[None],
        attn_mask=span.mask,
        is_causal=past == 0 and stop - first > 1,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
