"""Between arrays under short tensor names and torch blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cloud.llama_block import LlamaBlock, RmsNorm
from prepare.base_model import FloatArray
from shared.model_bundle import Architecture


def block_from_weights(arch: Architecture, tensors: Mapping[str, FloatArray]) -> LlamaBlock:
    """A float32 block with a copy of ``tensors`` (short names of ``layer_names``)."""
    block = LlamaBlock(arch)
    block.load_state_dict(
        {f"{name}.weight": torch.tensor(values) for name, values in tensors.items()}
    )
    return block


def weights_of_block(block: LlamaBlock) -> dict[str, FloatArray]:
    """The inverse of :func:`block_from_weights`."""
    return {
        name.removesuffix(".weight"): values.detach().float().cpu().numpy()
        for name, values in block.state_dict().items()
    }


def norm_from_weights(arch: Architecture, weight: FloatArray) -> RmsNorm:
    """A float32 norm with a copy of ``weight``."""
    norm = RmsNorm(arch.hidden_size, arch.norm_epsilon)
    norm.load_state_dict({"weight": torch.tensor(weight)})
    return norm
