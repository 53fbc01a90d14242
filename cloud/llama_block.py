"""One Llama transformer block in torch, with attention handed in by the caller.

Linear layers and norms act on rows, so rows of many sessions can be packed into one call; only
attention needs to know which row belongs to whom.  The cloud passes attention over its KV cache,
training passes plain causal attention over a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.model_bundle import Architecture

# (q [..., heads, head], k [..., kv_heads, head], v [..., kv_heads, head]) -> [..., heads, head]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (as transformers does)."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., size]`` in any float dtype; the dtype is kept."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(hidden.dtype)


class Rotary:
    """Half-rotated rotary position embedding (Su et al., arXiv 2104.09864), tables in float32."""

    def __init__(self, arch: Architecture, device: torch.device | None = None) -> None:
        steps = torch.arange(0, arch.head_size, 2, dtype=torch.float32) / arch.head_size
        inverse = 1.0 / (arch.rope_theta**steps)
        angles = torch.outer(torch.arange(arch.max_positions, dtype=torch.float32), inverse)
        self.cos = torch.cat([angles.cos()] * 2, dim=-1).to(device)
        self.sin = torch.cat([angles.sin()] * 2, dim=-1).to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``(cos, sin)``, each ``[*positions.shape, 1, head_size]``, for int64 ``positions``."""
        cos = self.cos[positions].unsqueeze(-2).to(dtype)
        return cos, self.sin[positions].unsqueeze(-2).to(dtype)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[..., heads, head_size]`` by tables that broadcast over the heads."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


class LlamaBlock(nn.Module):
    """Norm, grouped-query attention, norm, gated feed-forward; both with a residual."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        hidden, query = arch.hidden_size, arch.heads * arch.head_size
        self.arch = arch
        self.input_norm = RmsNorm(hidden, arch.norm_epsilon)
        self.q = nn.Linear(hidden, query, bias=False)
        self.k = nn.Linear(hidden, arch.kv_size, bias=False)
        self.v = nn.Linear(hidden, arch.kv_size, bias=False)
        self.o = nn.Linear(query, hidden, bias=False)
        self.post_norm = RmsNorm(hidden, arch.norm_epsilon)
        self.gate = nn.Linear(hidden, arch.intermediate_size, bias=False)
        self.up = nn.Linear(hidden, arch.intermediate_size, bias=False)
        self.down = nn.Linear(arch.intermediate_size, hidden, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """``[..., hidden]`` → the same shape; ``cos`` and ``sin`` from :meth:`Rotary.at`."""
        size = self.arch.head_size
        x = self.input_norm(hidden)
        q = rotate(self.q(x).unflatten(-1, (-1, size)), cos, sin)
        k = rotate(self.k(x).unflatten(-1, (-1, size)), cos, sin)
        v = self.v(x).unflatten(-1, (-1, size))
        hidden = hidden + self.o(attend(q, k, v).flatten(-2))
        x = self.post_norm(hidden)
        out: Tensor = hidden + self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a batch ``[batch, time, heads, head_size]`` over itself, causal, no cache."""
    out = F.scaled_dot_product_attention(
        q.transpose(-3, -2),
        k.transpose(-3, -2),
        v.transpose(-3, -2),
        is_causal=True,
        enable_gqa=True,
    )
    return out.transpose(-3, -2)
