"""``tandem bench`` as a user runs it: a real cloud, a real proxy, a tiny bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.timeline import Timeline
from simulator.bench.answer import Answer
from simulator.bench.journal import MEASUREMENTS_NAME
from simulator.bench.naive_split import NaiveSplit
from simulator.bench.plan import BenchSettings
from simulator.bench.registry import Bench
from tests.cloud_harness import tiny_bundle
from tests.edge_harness import PROMPTS, edge_and_cloud, full_answer, ids_of, options_for

COMMAND = [sys.executable, "-m", "shared.cli", "bench"]
SECONDS = 240
ROOT = Path(__file__).parents[2]
CONTENDERS = ("cloud-only", "naive-split", "blocking@0.8", "standalone")
SMALL = [
    "--precision", "float32", "--limit", "2", "--repeats", "1", "--rtt", "10", "--rate", "20",
    "--threads", "1", "--cloud-threads", "1", "--contenders", ",".join(CONTENDERS),
]  # fmt: skip
# quality and timing of four contenders on two prompts, and a timeline
MEASUREMENTS = 2 * 4 * 2 + 1


def environment() -> dict[str, str]:
    return os.environ | {"TANDEM_BUNDLE": str(tiny_bundle().folder), "COLUMNS": "200"}


def bench(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def keys_in(folder: Path) -> list[tuple[str, ...]]:
    lines = [json.loads(line) for line in (folder / MEASUREMENTS_NAME).read_text().splitlines()]
    return [tuple(line["key"]) for line in lines if "key" in line]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children under /proc")
def test_interrupted_resumed_finished_and_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*SMALL, "--max-tokens", "4", "--out", str(out)]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + SECONDS
    while not ((out / MEASUREMENTS_NAME).exists() and keys_in(out)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)  # another process's file announces nothing
    children = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, errors
    assert "are kept in" in errors
    assert "Traceback" not in errors
    assert len(children) >= 2  # the cloud and the link
    assert not any(alive(child) for child in children)
    kept = keys_in(out)
    assert 1 <= len(kept) < MEASUREMENTS

    copy = tmp_path / "docs" / "results.md"
    errors = bench(*arguments, "--report", str(copy))
    assert f"{len(kept)} of {MEASUREMENTS} measurements" in errors
    keys = keys_in(out)
    assert keys[: len(kept)] == kept
    assert len(set(keys)) == len(keys) == MEASUREMENTS

    record = json.loads((out / "results.json").read_text())
    rows = {row["contender"]: row for row in record["rows"]}
    assert set(rows) == set(CONTENDERS)
    for row in rows.values():
        parts = row["split"]["edge"] + row["split"]["cloud"] + row["split"]["link"]
        assert parts == pytest.approx(row["total"])
        assert row["broken"] == 0
    trips = {"cloud-only": 2, "naive-split": 1 + 4, "blocking@0.8": 1, "standalone": 0}
    for name, count in trips.items():  # of two prompts; the link is really there
        assert rows[name]["split"]["link"] >= 2 * 0.010 * count * 0.9, name
    assert rows["standalone"]["uploaded"] == rows["standalone"]["split"]["cloud"] == 0
    assert rows["naive-split"]["uploaded"] > 2 * rows["blocking@0.8"]["uploaded"]
    assert record["quality"]["cloud-only"]["agreement"] == 1.0
    assert record["quality"]["naive-split"]["agreement"] > 0.9
    made = [session["measurements"] for session in record["sessions"]]
    assert made == [len(kept), MEASUREMENTS - len(kept)]
    report = (out / "report.md").read_text()
    assert "## Where Tandem loses" in report
    assert str(tmp_path) not in report
    assert (copy.with_suffix("") / "timeline.png").exists()

    before = (out / MEASUREMENTS_NAME).read_bytes()
    assert f"{MEASUREMENTS} of {MEASUREMENTS} measurements" in bench(*arguments)
    refusal = bench(*SMALL, "--max-tokens", "5", "--out", str(out), expect=2)
    assert "max_tokens was 4, is 5" in refusal
    assert (out / MEASUREMENTS_NAME).read_bytes() == before

    # what other code measured is shown, but added to on request alone
    lines = [json.loads(line) for line in before.decode().splitlines()]
    for line in lines:
        if "session" in line:
            line["session"]["commit"] = "0123456789ab"
    text = [json.dumps(line) + "\n" for line in lines]
    (out / MEASUREMENTS_NAME).write_text("".join(text))
    bench(*arguments)
    (out / MEASUREMENTS_NAME).write_text("".join(text[:-1]))  # the timeline is to be made again
    assert "made by 0123456789ab, this is " in bench(*arguments, expect=2)
    bench(*arguments, "--mix-versions")
    assert "2 versions of the code (0123456789ab, " in (out / "report.md").read_text()
    assert keys_in(out) == keys


def test_help_shows_examples() -> None:
    done = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    assert "tandem bench --quick" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "5-tin-cans"], "no preset '5-tin-cans': there are loopback"),
        (["--rate", "0"], "link.up.rate_mbit"),
        (["--rtt", "fast"], "--rtt 'fast' is not a list of numbers"),
        (["--rtt", "-5"], "link.up.delay_ms"),
        (
            ["--contenders", "cloud-only,warp"],
            "no contender 'warp': there are auto-cost, auto-latency",
        ),
        (["--contenders", "llama.cpp"], "contender llama.cpp cannot run"),
        (["--trace-up", "up.txt"], "both --trace-up and --trace-down"),
        (["--trace-up", "no", "--trace-down", "no"], "no cannot be read"),
        (["--prompts", "none.jsonl"], "none.jsonl cannot be read"),
        (["--gguf", "none.gguf"], "none.gguf cannot be read"),
        (["--max-tokens", "100000"], "tokens; "),
        (["--precision", "int4"], "has no int4 edge"),
        (["--report", "."], "--report '.' is not the name of a .md file"),
        (["--report", "results"], "--report 'results' is not the name of a .md file"),
        (["--report", "pyproject.toml/results.md"], "pyproject.toml is not a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = arguments if "--precision" in arguments else [*arguments, "--precision", "float32"]
    errors = bench(*chosen, "--out", str(out), expect=2)
    assert says in errors
    assert not out.exists()


def test_a_bad_trace_is_said_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.up"
    bad.write_text("1\n3\n2\n")
    errors = bench("--trace-up", str(bad), "--trace-down", str(bad), expect=2)
    assert "line 3: 2 is earlier than the line before" in errors


async def test_the_naive_split_says_what_the_unsplit_model_says_and_keeps_nothing() -> None:
    settings = BenchSettings(8, ContextCodec.FLOAT32, "float32", 1, 1, 0)
    async with edge_and_cloud() as engine:
        naive = NaiveSplit(Bench(engine, settings, None))
        for prompt in PROMPTS[:3]:
            answer = await naive.answer(prompt, 8)
            assert list(answer.token_ids) == full_answer(prompt, 8)
            # every token's whole context anew: 4 layers above the cut, n positions each time
            lengths = range(len(prompt), len(prompt) + len(answer.token_ids))
            assert answer.cloud_layer_positions == 4 * sum(lengths)
            assert answer.uploaded_bytes > sum(lengths) * 64 * 4  # float32, hidden size 64
            forced = await naive.answer(prompt, 8, forced_ids=answer.token_ids)
            assert forced.token_ids == answer.token_ids


@pytest.mark.parametrize("mode", [Mode.COLLABORATIVE, Mode.CLOUD_ONLY, Mode.STANDALONE])
async def test_a_timeline_tells_what_the_statistics_count(mode: Mode) -> None:
    async with edge_and_cloud() as engine:
        plain = await engine.generate(PROMPTS[1], options_for(mode))
        timeline = Timeline()
        result = await engine.generate(PROMPTS[1], options_for(mode), timeline)
    assert ids_of(result) == ids_of(plain)
    waited = sum(wait.stop - wait.start for wait in timeline.waits)
    assert waited == pytest.approx(result.statistics.stall_seconds)
    said = sum(wait.cloud_seconds for wait in timeline.waits)
    assert said == pytest.approx(result.statistics.cloud_seconds)
    split = Answer.of_result(result).split
    assert split.edge + split.cloud + split.link == pytest.approx(result.seconds)
    origins = Counter(token.origin for token in result.tokens)
    assert len(timeline.waits) == origins["cloud"]
    assert bool(timeline.work) == (mode is not Mode.CLOUD_ONLY)
    assert bool(timeline.uploads) == (mode is not Mode.STANDALONE)
    if mode is Mode.COLLABORATIVE:
        covered = sum(upload.count for upload in timeline.uploads)
        assert covered >= len(PROMPTS[1]) + len(result.tokens) - 1
