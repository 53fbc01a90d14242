"""What tests of the benchmark share: plans and measurements that nobody measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.bench.answer import Answer
from simulator.bench.environment import Environment
from simulator.bench.journal import Journal
from simulator.bench.links import cell, named
from simulator.bench.plan import BenchPrompt, Plan, Task
from simulator.bench.registry import parse_entrant
from simulator.bench.report import ReportContext
from simulator.bench.results import Results, sum_up
from simulator.bench.sessions import Session

CONTENDERS = ("cloud-only", "naive-split", "blocking@0.8", "standalone", "llama.cpp")
LAYERS = 6
TOKENS = 10
# seconds per token without a link, round trips per answer, share of tokens asked, agreement
BEHAVIOUR: dict[str, tuple[float, float, float, float]] = {
    "cloud-only": (0.040, 3, 1.0, 1.0),
    "naive-split": (0.100, 12, 1.0, 1.0),
    "blocking@0.8": (0.020, 7, 0.5, 0.9),
    "standalone": (0.010, 0, 0.0, 0.5),
    "llama.cpp": (0.015, 0, 0.0, 0.8),
}
BUNDLE: dict[str, Any] = {
    "name": "tiny", "source": "seed 0", "recipe": "ab" * 32, "layers": LAYERS, "cut": 2,
    "exits": ["exit1 after layer 2"],
}  # fmt: skip


def plan_of(
    contenders: tuple[str, ...] = CONTENDERS,
    rtts: tuple[float, ...] = (0, 100),
    repeats: int = 2,
    prompts: tuple[str, ...] = ("one", "two"),
) -> Plan:
    return Plan(
        entrants=tuple(parse_entrant(name) for name in contenders),
        links=tuple(cell(rtt, 10) for rtt in rtts),
        prompts=tuple(BenchPrompt(text, (1, 2, 3)) for text in prompts),
        repeats=repeats,
        costly_repeats=1,
        unshaped=named("loopback"),
    )


def answer_of(task: Task) -> Answer:
    """A repeat is a millisecond slower than the one before."""
    per_token, trips, asked, _ = BEHAVIOUR[task.entrant.name]
    waited = trips * task.link.spec.rtt_ms / 1e3
    own = TOKENS * per_token + task.repeat / 1e3
    cloud = own * asked
    return Answer(
        token_ids=tuple(range(TOKENS)),
        text="a b c",
        seconds=own + waited,
        first_token_seconds=per_token + waited / TOKENS,
        stall_seconds=waited + cloud,
        cloud_seconds=cloud,
        requests=round(asked * TOKENS),
        uploaded_bytes=round(1000 * asked),
        downloaded_bytes=round(100 * asked),
        cloud_layer_positions=round(asked * 12),
        cloud_busy_seconds=cloud,
        origins={"cloud": round(asked * TOKENS)},
    )


def record_of(task: Task) -> dict[str, Any]:
    answer = answer_of(task)
    if task.kind == "timing":
        return answer.as_record()
    if task.kind == "timeline":
        events = {
            "work": [{"start": 5.0, "stop": 5.1, "positions": 3}],
            "uploads": [{"time": 5.1, "position": 0, "count": 3, "size": 3000}],
            "waits": [{"start": 5.1, "stop": 5.4, "position": 3, "cloud_seconds": 0.1}],
        }
        return {"began": 5.0, "answer": answer.as_record(), "events": events}
    agreement = BEHAVIOUR[task.entrant.name][3]
    return {
        "positions": TOKENS,
        "agreeing": round(agreement * TOKENS),
        "exact": agreement == 1.0,
        "rouge_l": agreement,
        "reference_text": "a b c",
        "free": answer.as_record(),
    }


def filled(plan: Plan, folder: Path) -> Results:
    """The results of a plan whose measurements :func:`record_of` makes up."""
    with Journal(folder, {"made": "up"}, environment_of().as_record()) as journal:
        for task in plan.tasks():
            if task.key not in journal:
                journal.add(task.key, record_of(task))
        return sum_up(plan, journal, LAYERS)


def environment_of(**changes: Any) -> Environment:
    plain: dict[str, Any] = {
        "date": "2030-01-02 03:04 UTC",
        "processor": "Abacus 9",
        "cores": 2,
        "logical_processors": 4,
        "memory_gib": 8.0,
        "system": "Linux 6 x86_64",
        "python": "3.11.0",
        "packages": {"numpy": "2.0"},
        "commit": "0123456789ab",
        "bundle": BUNDLE,
        "load": 0.0,
    }
    return Environment(**(plain | changes))


def context_of(**changes: Any) -> ReportContext:
    plain: dict[str, Any] = {
        "sessions": (Session(environment_of(), 40),),
        "bundle": BUNDLE,
        "command": "tandem bench",
        "settings": {
            "max_tokens": TOKENS, "precision": "int8", "threads": None, "bundle": "x",
            "machine": "Abacus 9, 2 cores",
        },
        "prompts": "2 of its own",
        "repeats": "2",
        "plots": {},
        "left_out": {},
    }  # fmt: skip
    return ReportContext(**(plain | changes))
