"""llama.cpp in a process of its own, through its C functions, at its best thread count.

``python -m simulator.bench.llama_cpp_worker GGUF ROOM THREADS``
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from simulator.bench.worker_process import Reply, claim_stdout, serve

_CALIBRATION_TOKENS = 16
_CALIBRATION_ROUNDS = 3
_CALIBRATION_SECONDS = 10.0  # on a busy machine one round must do


class LlamaCpp:
    """Greedy decoding without a sampler chain or copies of the logits."""

    def __init__(self, gguf: str, room: int, threads: int) -> None:
        import llama_cpp  # noqa: PLC0415  the parent asked whether it is there

        self._llama = llama_cpp
        self._model = llama_cpp.Llama(
            gguf, n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._memory = llama_cpp.llama_get_memory(self._model.ctx)
        self._vocabulary = self._model.n_vocab()

    def use_threads(self, threads: int) -> None:
        """Run on so many from now on."""
        self._llama.llama_set_n_threads(self._model.ctx, threads, threads)

    def answer(self, request: Reply) -> Reply:
        """Tokens, seconds to the first and to the last; prompt and decoding both count."""
        forced, stop = request.get("forced_ids"), set(request["stop_token_ids"])
        count = request["max_tokens"] if forced is None else len(forced)
        started = time.perf_counter()
        self._llama.llama_memory_clear(self._memory, True)
        tokens = [self._next(request["prompt_ids"])]
        first = time.perf_counter() - started
        while len(tokens) < count:
            following = tokens[-1] if forced is None else forced[len(tokens) - 1]
            if following in stop:
                break
            tokens.append(self._next([following]))
        seconds = time.perf_counter() - started
        return {"token_ids": tokens, "seconds": seconds, "first_token_seconds": first}

    def _next(self, tokens: Sequence[int]) -> int:
        most = self._model.n_batch  # llama_decode aborts the process at more
        for start in range(0, len(tokens), most):
            chunk = tokens[start : start + most]
            array = (self._llama.llama_token * len(chunk))(*chunk)
            batch = self._llama.llama_batch_get_one(array, len(chunk))
            if code := self._llama.llama_decode(self._model.ctx, batch):
                raise RuntimeError(f"llama_decode gave {code}")
        logits = self._llama.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def best_threads(engine: LlamaCpp, most: int) -> int:
    """The thread count in 1 to ``most`` that decodes fastest."""
    if most == 1:
        return 1
    request: Reply = {
        "prompt_ids": list(range(10, 26)),
        "max_tokens": _CALIBRATION_TOKENS,
        "stop_token_ids": [],
    }
    seconds: dict[int, list[float]] = {count: [] for count in range(1, most + 1)}
    engine.use_threads(1)
    engine.answer(request)
    started = time.perf_counter()
    for done in range(_CALIBRATION_ROUNDS):
        if done and time.perf_counter() - started > _CALIBRATION_SECONDS:
            break
        for count, measured in seconds.items():
            engine.use_threads(count)
            measured.append(engine.answer(request)["seconds"])
    return min(seconds, key=lambda count: statistics.median(seconds[count]))


def main() -> None:
    """Load, find the thread count, serve."""
    claim_stdout()
    gguf, room, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = LlamaCpp(gguf, room, threads)
    best = best_threads(engine, threads)
    engine.use_threads(best)
    serve({"threads": best}, engine.answer)


if __name__ == "__main__":
    main()
