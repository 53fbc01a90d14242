"""vLLM's CPU backend under the same load: so many answers at once, one after the other each.

``python -m benchmarks.vllm_load MODEL_FOLDER ROOM THREADS EDGES``, spoken to line by line
(:mod:`simulator.bench.worker_process`).
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from typing import Any

from simulator.bench.worker_process import Reply, claim_stdout, serve


class VllmLoad:
    """Greedy decoding of token ids, float32, continuous batching as vLLM has it."""

    def __init__(self, model: str, room: int, edges: int) -> None:
        from vllm import LLM, SamplingParams  # noqa: PLC0415  the parent asked whether it is there

        self._parameters = SamplingParams
        self._edges = edges
        self._engine: Any = LLM(
            model=model,
            dtype="float32",
            max_model_len=room,
            max_num_seqs=edges,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
        ).llm_engine

    def answer(self, request: Reply) -> Reply:
        """``prompts`` (token ids) over and over.  Edges begin one by one in the first half of
        ``warm_up`` seconds; from its end on, and once every edge has shown a token (for which they
        have ``steady`` seconds more), ``seconds`` are counted, and what the engine's last step
        takes beyond: what :class:`benchmarks.load_replay.Tally` has, the gaps answer by answer,
        and processor seconds."""
        prompts, stop = request["prompts"], request["stop_token_ids"]
        parameters = self._parameters(
            temperature=0.0, max_tokens=request["max_tokens"], stop_token_ids=stop, detokenize=False
        )
        turns = {edge: edge for edge in range(self._edges)}
        seen: dict[str, tuple[int, float]] = {}  # tokens so far, and when the last one came
        counted: dict[str, list[float]] = defaultdict(list)  # gaps of each answer

        def begin(edge: int) -> None:
            ids = prompts[turns[edge] % len(prompts)]
            turns[edge] += 1
            name = f"{edge}/{turns[edge]}"
            seen[name] = (0, time.perf_counter())
            self._engine.add_request(name, {"prompt_token_ids": ids}, parameters)

        tokens = answers = 0
        firsts: list[float] = []
        waiting = set(turns)  # for the first token
        began = time.perf_counter()
        start = began + request["warm_up"]
        end = start + request["steady"]
        stagger = request["warm_up"] / 2 / self._edges
        to_begin = list(reversed(turns))
        used = counted_from = None
        while (now := time.perf_counter()) < end:
            while to_begin and now >= began + to_begin[-1] * stagger:
                begin(to_begin.pop())
            if not seen:
                time.sleep(max(0.0, began + to_begin[-1] * stagger - now))
                continue
            if used is None and now >= start and not waiting:
                used, counted_from, end = time.process_time(), now, now + request["seconds"]
            for output in self._engine.step():
                now = time.perf_counter()
                count, last = seen[output.request_id]
                new = len(output.outputs[0].token_ids) - count
                seen[output.request_id] = (count + new, now)
                edge = int(output.request_id.partition("/")[0])
                if new:
                    waiting.discard(edge)
                if used is not None and new:
                    tokens += new
                    (counted[output.request_id] if count else firsts).append(now - last)
                if output.finished:
                    answers += used is not None
                    del seen[output.request_id]
                    begin(edge)
        if used is None or counted_from is None:
            return {"error": f"{len(waiting)} of {self._edges} edges have no token: give it fewer"}
        processor_seconds = time.process_time() - used
        seconds = time.perf_counter() - counted_from
        self._engine.abort_request(list(seen))
        return {
            "seconds": seconds,
            "tokens": tokens,
            "answers": answers,
            "gaps": list(counted.values()),
            "firsts": firsts,
            "processor_seconds": processor_seconds,
        }


def main() -> None:
    """Load and serve."""
    claim_stdout()
    model, room, threads, edges = sys.argv[1], *(int(text) for text in sys.argv[2:5])
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or its time is another process's
    engine = VllmLoad(model, room, edges)
    serve({"threads": threads}, engine.answer)


if __name__ == "__main__":
    main()
