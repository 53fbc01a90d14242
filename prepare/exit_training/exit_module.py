"""An exit as torch trains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cloud.llama_block import causal_attention
from prepare.base_model import EMBEDDING, BaseModel
from prepare.exit_training.blocks import block_from_weights, norm_from_weights, weights_of_block
from prepare.exit_weights import ExitWeights


class ExitModule(nn.Module):
    """A trainable exit; weights start from ``weights`` in float32."""

    def __init__(self, model: BaseModel, weights: ExitWeights) -> None:
        super().__init__()
        arch = model.architecture
        self.info = weights.info
        self.vocabulary_ids = weights.vocabulary_ids
        self.blocks = nn.ModuleList(block_from_weights(arch, b) for b in weights.blocks)
        self.norm = norm_from_weights(arch, weights.norm)
        embedding = torch.from_numpy(model.weights[EMBEDDING])
        if weights.vocabulary_ids is not None:
            embedding = embedding[torch.from_numpy(weights.vocabulary_ids).long()]
        self.register_buffer("head", embedding.clone(), persistent=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[batch, time, hidden]`` → normed states that the head reads, same shape."""
        for block in self.blocks:
            hidden = block(hidden, cos, sin, causal_attention)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, states: Tensor) -> Tensor:
        """``[rows, hidden]`` → ``[rows, vocabulary]`` in the states' dtype."""
        head: Tensor = self.get_buffer("head")
        return states @ head.to(states.dtype).T

    def weights(self) -> ExitWeights:
        """A copy of what was learnt."""
        return ExitWeights(
            self.info,
            tuple(weights_of_block(b) for b in self.blocks),  # type: ignore[arg-type]
            self.norm.weight.detach().float().cpu().numpy().copy(),
            self.vocabulary_ids,
        )
