"""What the benchmarks compare: the edge's graphs and llama.cpp, both decoding greedily.

Each engine imports its libraries when it is asked to, so that a process that measures one engine's
memory holds nothing of the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from shared.model_bundle import Precision


class Engine(Protocol):
    """Something that decodes greedily; ``begin`` forgets what came before."""

    name: str
    threads: int

    def begin(self, prompt: Sequence[int]) -> int:
        """Read the prompt; return the first token."""

    def step(self, token: int) -> int:
        """Append ``token``; return the next one."""


class TandemEngine:
    """The edge's graphs: at full depth, or up to the last exit and read there."""

    def __init__(
        self, bundle: Path, precision: Precision, threads: int, room: int, *, full: bool
    ) -> None:
        from edge.exit_model import ExitModel  # noqa: PLC0415
        from shared.model_bundle import ModelBundle  # noqa: PLC0415

        self.name = f"tandem {precision}" + ("" if full else " standalone")
        self.threads = threads
        self._model = ExitModel(
            ModelBundle.load(bundle), precision, threads=threads, full_depth=full
        )
        self._state = self._model.open(room)
        self._full = full
        self._exit = len(self._model.exits) - 1
        self._ids = None if full else self._model.vocabulary_ids(self._exit)

    def begin(self, prompt: Sequence[int]) -> int:
        self._state.truncate(0)
        return self._next(prompt)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, tokens: Sequence[int]) -> int:
        self._state.extend(tokens)
        if self._full:
            return int(self._state.read_full().argmax())
        row = int(self._state.read_exit(self._exit).argmax())
        return row if self._ids is None else int(self._ids[row])


class LlamaCppEngine:
    """llama.cpp through its own C functions: no sampler chain, no copies of the logits.

    The weights are mapped, as it does by default: every page that a token reads is in the
    process, and none is there twice.
    """

    name = "llama.cpp"

    def __init__(self, gguf: Path, threads: int, room: int) -> None:
        import llama_cpp  # noqa: PLC0415

        self._llama = llama_cpp
        self.threads = threads
        self._model = llama_cpp.Llama(
            str(gguf),
            n_ctx=room,
            n_threads=threads,
            n_threads_batch=threads,
            use_mmap=True,
            verbose=False,
        )
        self._context = self._model.ctx
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = self._model.n_vocab()

    def use_threads(self, threads: int) -> None:
        self.threads = threads
        self._llama.llama_set_n_threads(self._context, threads, threads)

    def begin(self, prompt: Sequence[int]) -> int:
        self._llama.llama_memory_clear(self._memory, True)
        return self._next(prompt)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, tokens: Sequence[int]) -> int:
        array = (self._llama.llama_token * len(tokens))(*tokens)
        batch = self._llama.llama_batch_get_one(array, len(tokens))
        if code := self._llama.llama_decode(self._context, batch):
            raise ConfigurationError(f"llama.cpp could not decode (code {code})")
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@dataclass(frozen=True)
class Turn:
    """One decoding: seconds for the prompt, tokens per second after it, and the tokens."""

    prompt_seconds: float
    tokens_per_second: float
    tokens: tuple[int, ...]


def decode(engine: Engine, prompt: Sequence[int], tokens: int) -> Turn:
    """Greedy tokens after ``prompt``; the end-of-text token does not stop it."""
    start = time.perf_counter()
    found = [engine.begin(prompt)]
    begun = time.perf_counter()
    for _ in range(tokens):
        found.append(engine.step(found[-1]))
    return Turn(begun - start, tokens / (time.perf_counter() - begun), tuple(found))
