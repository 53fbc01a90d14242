"""A cloud without its model, in a process of its own (``python -m``).

What is left of a served cloud is what it does for messages.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloud.deep_model import Chunk, DeepModel
from cloud.kv_cache import KvCache
from cloud.server import CloudServer
from cloud.settings import CloudSettings
from simulator.bench.worker_process import claim_stdout

_TOKEN = 5  # whatever it is asked
_CHOICES = 8


class InstantModel:
    """As :class:`DeepModel`, but it computes nothing, and says one token for ever.

    Attributes:
        thread_seconds: of the processor that the batcher's thread has used.
    """

    def __init__(self, model: DeepModel) -> None:
        self.architecture, self.cut, self.device = model.architecture, model.cut, model.device
        self.dtype = model.dtype
        self.thread_seconds = 0.0
        self._new_cache = model.new_cache
        self._logits = torch.zeros((1, _CHOICES))
        self._logits[0, _TOKEN] = 1.0

    def new_cache(self, first_layer: int) -> KvCache:
        """An empty cache, which stays empty of content."""
        return self._new_cache(first_layer)

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Zeros for each chunk, ``[len(wanted), hidden]``."""
        for chunk in chunks:
            chunk.cache.grow(chunk.cache.length + len(chunk.rows))
            chunk.cache.length += len(chunk.rows)
        return [torch.zeros((len(c.wanted), self.architecture.hidden_size)) for c in chunks]

    def logits(self, hidden: Tensor) -> Tensor:
        """``[n, 8]``; the last thing of a pass."""
        self.thread_seconds = time.thread_time()
        return self._logits.expand(len(hidden), _CHOICES)


async def serve(settings: CloudSettings, replies: Any) -> None:
    """Say the address, then, for each line of the input, the processor seconds that messages have
    taken: the process's, less the batcher's thread's."""
    async with CloudServer(settings) as server:
        model: Any = InstantModel(server.batcher.model)
        server.batcher.model = model
        print(json.dumps({"address": server.address}), file=replies, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            used = time.process_time() - model.thread_seconds
            print(json.dumps({"seconds": used}), file=replies, flush=True)


def main(arguments: list[str]) -> None:
    """``BUNDLE STREAMS``: serve so many on a free port."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent closes the input
    replies = claim_stdout()
    bundle, streams = Path(arguments[0]), int(arguments[1])
    settings = CloudSettings(bundle=bundle, port=0, max_sessions=4 * streams, log_level="warning")
    asyncio.run(serve(settings, replies))


if __name__ == "__main__":
    main(sys.argv[1:])
