"""vLLM's CPU backend in a process of its own, token by token through its engine.

``python -m simulator.bench.vllm_worker MODEL_FOLDER ROOM THREADS``
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from simulator.bench.worker_process import Reply, claim_stdout, serve


class Vllm:
    """Greedy decoding of token ids with the bundle's cloud weights, float32, one at a time."""

    def __init__(self, model: str, room: int) -> None:
        from vllm import LLM, SamplingParams  # noqa: PLC0415  the parent asked whether it is there

        self._parameters = SamplingParams
        self._llm: Any = LLM(
            model=model,
            dtype="float32",
            max_model_len=room,
            max_num_seqs=1,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._requests = 0

    def answer(self, request: Reply) -> Reply:
        """Tokens, seconds to the first and to the last."""
        if request.get("forced_ids") is not None:
            return self._forced(request["prompt_ids"], request["forced_ids"])
        parameters = self._parameters(
            temperature=0.0,
            max_tokens=request["max_tokens"],
            stop_token_ids=request["stop_token_ids"],
            detokenize=False,
        )
        engine = self._llm.llm_engine
        self._requests += 1
        started = time.perf_counter()
        engine.add_request(
            str(self._requests), {"prompt_token_ids": request["prompt_ids"]}, parameters
        )
        first, tokens = 0.0, []
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens = list(output.outputs[0].token_ids)
                first = first or time.perf_counter() - started
        seconds = time.perf_counter() - started
        return {"token_ids": tokens, "seconds": seconds, "first_token_seconds": first}

    def _forced(self, prompt: list[int], forced: list[int]) -> Reply:
        """What it would say at each position of a given text: one pass over all but its last
        token, whose own place is generated."""
        parameters = self._parameters(
            temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False
        )
        started = time.perf_counter()
        text = {"prompt_token_ids": [*prompt, *forced[:-1]]}
        (output,) = self._llm.generate([text], parameters, use_tqdm=False)
        rows = output.prompt_logprobs[len(prompt) :]
        tokens = [max(row, key=lambda token: row[token].logprob) for row in rows]
        tokens.append(output.outputs[0].token_ids[0])
        seconds = time.perf_counter() - started
        return {"token_ids": tokens, "seconds": seconds, "first_token_seconds": seconds}


def main() -> None:
    """Load and serve."""
    claim_stdout()
    model, room, threads = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = Vllm(model, room)
    serve({"threads": int(threads)}, engine.answer)


if __name__ == "__main__":
    main()
