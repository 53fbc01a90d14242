"""Outside peers: the child process, and what runs in it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edge.context_source import ContextCodec
from prepare.weight_source import SMOLLM2
from shared.errors import ConfigurationError
from shared.model_bundle import cache_folder
from simulator.bench import worker_process
from simulator.bench.outside_peers import OutsidePeer
from simulator.bench.plan import BenchSettings
from simulator.bench.registry import Bench
from simulator.bench.vllm_worker import Vllm
from simulator.bench.worker_process import WorkerProcess
from tests.edge_harness import edge_engine

GGUF = cache_folder() / "weights" / Path(SMOLLM2.member).name
SETTINGS = BenchSettings(8, ContextCodec.FP16, "float32", 1, 1, 0)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))


def fake(how: str = "well") -> WorkerProcess:
    return WorkerProcess("the fake", "tests.unit.simulator.bench.fake_worker", [how])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child under /proc")
async def test_a_worker_answers_until_the_block_ends_whatever_is_printed() -> None:
    async with fake() as worker, edge_engine(None) as engine:
        assert worker.ready["threads"] == 3
        assert not gone(worker.ready["pid"])
        peer = OutsidePeer(Bench(engine, SETTINGS, None), "fake", worker)
        answer = await peer.answer((5, 6, 7), 8)
        assert answer.token_ids == (5, 6, 7)
        assert answer.text == engine.decode([5, 6, 7])
        assert (answer.seconds, answer.first_token_seconds) == (0.5, 0.25)
        assert (answer.origins, answer.requests) == ({"fake": 3}, 0)
        assert answer.split.edge == answer.split.total
        assert (await peer.answer((5,), 8, forced_ids=(8, 9))).token_ids == (8, 9)
    assert gone(worker.ready["pid"])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("dies", r"the fake ended \(exit status 3\): .*out of ideas"),
        ("killed", r"the fake ended \(Illegal instruction\)"),
        ("silent", r"the fake ended \(exit status 5\)"),
        ("error", "the fake: no ideas"),
        ("mute", "the fake is silent after 1 s"),
    ],
)
async def test_a_worker_that_fails_says_why(
    how: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(worker_process, "_STOP_SECONDS", 0.1)
    async with fake(how) as worker:
        with pytest.raises(ConfigurationError, match=f"(?s){says}"):
            await worker.ask({"prompt_ids": [1], "forced_ids": None})


@pytest.mark.skipif(not GGUF.is_file(), reason="SmolLM2's GGUF file is not in the cache")
async def test_llama_cpp_reads_prompts_longer_than_its_batch() -> None:
    pytest.importorskip("llama_cpp")
    long = [1, *(1000 + number % 700 for number in range(519))]
    arguments = [str(GGUF), "560", "1"]
    request: dict[str, Any] = {
        "prompt_ids": long[:20], "max_tokens": 4, "forced_ids": None, "stop_token_ids": [],
    }  # fmt: skip
    async with WorkerProcess("llama.cpp", "simulator.bench.llama_cpp_worker", arguments) as worker:
        assert worker.ready == {"threads": 1}
        assert len((await worker.ask(request | {"prompt_ids": long}))["token_ids"]) == 4
        reply = await worker.ask(request)
        assert len(reply["token_ids"]) == 4
        assert 0 < reply["first_token_seconds"] < reply["seconds"]
        assert (await worker.ask(request))["token_ids"] == reply["token_ids"]  # nothing is kept
        # forced along its own answer, it says the same; a stop token ends it
        forced = request | {"forced_ids": reply["token_ids"]}
        assert (await worker.ask(forced))["token_ids"] == reply["token_ids"]
        stopped = request | {"stop_token_ids": reply["token_ids"][:1]}
        assert (await worker.ask(stopped))["token_ids"] == reply["token_ids"][:1]


@dataclass
class FakeVllm:
    """Of vLLM what a forced pass touches: position ``n`` says token ``n``; full texts are refused
    as vLLM does."""

    max_model_len: int
    asked: list[list[int]] = field(default_factory=list)

    def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> list[Any]:
        (ids,) = [prompt["prompt_token_ids"] for prompt in prompts]
        self.asked.append(ids)
        if len(ids) + parameters.max_tokens > self.max_model_len:
            raise ValueError("longer than the maximum model length")
        rows: list[Any] = [None]
        for place, token in enumerate(ids[1:], start=1):
            rows.append(
                {token: SimpleNamespace(logprob=-9.0), place: SimpleNamespace(logprob=-0.1)}
            )
        said = SimpleNamespace(token_ids=[len(ids)])
        return [SimpleNamespace(prompt_logprobs=rows, outputs=[said])]


def test_vllm_is_forced_along_a_text_that_fills_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = FakeVllm(max_model_len=8)
    module = ModuleType("vllm")
    monkeypatch.setattr(module, "LLM", lambda **_: llm, raising=False)
    monkeypatch.setattr(module, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", module)
    reply = Vllm("folder", 8).answer(
        {"prompt_ids": [50, 51, 52], "forced_ids": [90, 91, 92, 93, 94]}
    )
    assert reply["token_ids"] == [3, 4, 5, 6, 7]
    assert llm.asked == [[50, 51, 52, 90, 91, 92, 93]]
