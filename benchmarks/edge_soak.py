"""Half an hour of a daemon's hard life: clients come, go and cancel; link, cloud and broker fail.

    python -m benchmarks.edge_soak --minutes 30 --clients 6 --seed 1

Real processes: cloud, shaped link, Mosquitto (where it is installed) and ``tandem edge serve``.
Exits with 1 where a text was wrong, a stream had no proper end, an answer cannot be explained,
or the daemon grew: memory or open files, idle at the end against idle after the first fifth
(what it is in between is printed as well).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from shared.model_bundle import default_bundle_folder
from simulator.bench.shaped_link import ShapedLink
from simulator.local_cloud import LocalCloud

_PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "Give me five tips for growing tomatoes on a small balcony.",
    "Name the planets, the nearest to the sun first.",
)
_MODES = ("standalone", "collaborative", "auto", "cloud-only")
_TOKENS = 48
_PHASES = 5
# without a byte: behind five others, each of which may wait for a cloud that is gone
_CLIENT_SECONDS = 600
_GROWTH_BYTES, _GROWTH_FILES = 30 << 20, 8
# what a client may meet while the link is down or too many wait; anything else is a fault
_EXPECTED = {429, 503}


@dataclass
class Tally:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Something that must not be."""
        self.faults.append(text)
        print(f"FAULT: {text}", file=sys.stderr)


@asynccontextmanager
async def child(*command: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is ended with the block."""
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


class Broker:
    """Mosquitto on loopback, or nothing where it is not installed."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        self.port = random.randrange(20_000, 30_000) if found else 0
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self._command, self._log = [str(found), "-c", str(config)], folder / "mosquitto.log"
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Run it."""
        if self.port:
            await self._stack.enter_async_context(child(*self._command, log=self._log))

    async def stop(self) -> None:
        """End it."""
        await self._stack.aclose()


@asynccontextmanager
async def daemon(
    folder: Path, cloud: str, broker: Broker
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """``tandem edge serve``: its URL and process."""
    port_file = folder / "port"
    command = [sys.executable, "-m", "shared.cli", "edge", "serve", "--port", "0"]
    command += ["--port-file", str(port_file), "--cloud", cloud, "--log-format", "json"]
    if broker.port:
        command += ["--mqtt", f"127.0.0.1:{broker.port}", "--telemetry-seconds", "1"]
    async with child(*command, log=folder / "daemon.log") as process:
        async with asyncio.timeout(60):
            while not port_file.exists():
                if process.returncode is not None:
                    raise SystemExit((folder / "daemon.log").read_text()[-2000:])
                await asyncio.sleep(0.05)
        yield f"http://{port_file.read_text().strip()}", process


def request_of(prompt: str, mode: str, *, stream: bool) -> dict[str, Any]:
    """The body of a request."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "stream": stream,
        "tandem": {"mode": mode},
    }


async def read_stream(
    response: httpx.Response, leaves_after: int | None
) -> tuple[str, str | None, bool]:
    """Text, how it ended (a finish reason, or ``error``), and whether the stream was read whole."""
    text, ended, chunks = "", None, 0
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return text, ended, True
        event = json.loads(line.removeprefix("data: "))
        chunks += 1
        if "error" in event:
            ended = "error"
        elif event["choices"]:
            text += event["choices"][0]["delta"].get("content") or ""
            ended = event["choices"][0]["finish_reason"] or ended
        if chunks == leaves_after:
            return text, "left", False
    return text, ended, ended == "error"


class Client:
    """Asks again and again, sometimes leaves in the middle."""

    def __init__(self, url: str, tally: Tally, references: dict[tuple[str, str], str]) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=_CLIENT_SECONDS)
        self._tally, self._references = tally, references

    async def run(self, dice: random.Random) -> None:
        """Until cancelled."""
        async with self._http:
            while True:
                prompt, mode = dice.choice(_PROMPTS), dice.choice(_MODES)
                leaves = dice.randrange(1, _TOKENS) if dice.random() < 0.4 else None
                if dice.random() < 0.3:
                    await self._ask_whole(prompt, mode, dice.random() * 3 if leaves else None)
                else:
                    await self._ask_streamed(prompt, mode, leaves)
                await asyncio.sleep(dice.random())

    async def _ask_whole(self, prompt: str, mode: str, patience: float | None) -> None:
        try:
            async with asyncio.timeout(patience):
                body = request_of(prompt, mode, stream=False)
                response = await self._http.post("/v1/chat/completions", json=body)
        except TimeoutError:
            self._tally.counts["left"] += 1
            return
        if self._refused(response, mode):
            return
        choice = response.json()["choices"][0]
        self._ended(prompt, mode, choice["message"]["content"], choice["finish_reason"])

    async def _ask_streamed(self, prompt: str, mode: str, leaves: int | None) -> None:
        body = request_of(prompt, mode, stream=True)
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
            if self._refused(response, mode):
                return
            text, ended, whole = await read_stream(response, leaves)
        if ended == "left":
            self._tally.counts["left"] += 1
            return
        if not whole:
            self._tally.fault(f"{mode}: a stream stopped without an end after {text!r}")
        self._ended(prompt, mode, text, ended)

    def _refused(self, response: httpx.Response, mode: str) -> bool:
        if response.status_code == 200:
            return False
        self._tally.counts[f"refused {response.status_code}"] += 1
        unavoidable = response.status_code in _EXPECTED and (
            response.status_code == 429 or mode in ("collaborative", "cloud-only")
        )
        if not unavoidable or "message" not in response.json().get("error", {}):
            self._tally.fault(f"{mode}: {response.status_code} {response.text[:300]}")
        return True

    def _ended(self, prompt: str, mode: str, text: str, ended: str | None) -> None:
        self._tally.counts[f"{mode} {ended}"] += 1
        if ended == "error":
            if mode in ("standalone", "auto"):
                self._tally.fault(f"{mode}: an answer broke off")
            return
        if ended not in ("stop", "length"):
            self._tally.fault(f"{mode}: ended with {ended}")
        expected = self._references.get((prompt, mode))
        if expected is not None and text != expected:
            self._tally.fault(f"{mode}: {text!r} in place of {expected!r}")


async def trouble(
    dice: random.Random, cloud: LocalCloud, link: ShapedLink, broker: Broker, tally: Tally
) -> None:
    """One thing after another breaks and comes back."""
    while True:
        await asyncio.sleep(dice.uniform(3, 15))
        what = dice.choice(("outage", "reset", "cloud", "broker"))
        tally.counts[f"trouble: {what}"] += 1
        if what == "outage":
            await link.break_off(dice.uniform(0.5, 8))
        elif what == "reset":
            await link.reset()
        elif what == "cloud":
            await cloud.kill()
            await asyncio.sleep(dice.uniform(0, 5))
            await cloud.start()
        else:
            await broker.stop()
            await asyncio.sleep(dice.uniform(0, 10))
            await broker.start()


def size_of(process: asyncio.subprocess.Process) -> tuple[int, int]:
    """Resident bytes and open files."""
    folder = Path(f"/proc/{process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return pages * 4096, len(list((folder / "fd").iterdir()))


async def idle(url: str) -> None:
    """Wait until no answer is made, here for two seconds."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        calm = 0
        while calm < 4:
            status = (await http.get("/tandem/status")).json()
            calm = calm + 1 if status["active"] == status["waiting"] == 0 else 0
            await asyncio.sleep(0.5)


async def references_of(url: str) -> dict[tuple[str, str], str]:
    """What each prompt is answered with, in the modes whose text is a function of the prompt."""
    found = {}
    async with httpx.AsyncClient(base_url=url, timeout=_CLIENT_SECONDS) as http:
        for prompt in _PROMPTS:
            for mode in ("standalone", "collaborative", "cloud-only"):
                body = request_of(prompt, mode, stream=False)
                response = await http.post("/v1/chat/completions", json=body)
                response.raise_for_status()
                found[prompt, mode] = response.json()["choices"][0]["message"]["content"]
    return found


async def phase(
    seconds: float, clients: int, dice: random.Random, url: str, stack: dict[str, Any], tally: Tally
) -> None:
    """Clients and trouble for so long; then all calms down."""
    tasks = [
        asyncio.create_task(
            Client(url, tally, stack["references"]).run(random.Random(dice.random()))
        )
        for _ in range(clients)
    ]
    tasks.append(
        asyncio.create_task(trouble(dice, stack["cloud"], stack["link"], stack["broker"], tally))
    )
    with Progress(transient=True) as progress:
        bar = progress.add_task("soaking", total=seconds)
        for _ in range(max(1, round(seconds))):
            done, _ = await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            progress.advance(bar)
            if done:
                break
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            tally.fault(f"a client failed: {outcome!r}")
    await idle(url)


async def soak(minutes: float, clients: int, seed: int) -> Tally:
    """Run it all."""
    dice, tally = random.Random(seed), Tally()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-soak-")))
        cloud = await stack.enter_async_context(LocalCloud(default_bundle_folder()))
        link = await stack.enter_async_context(ShapedLink(cloud.address, seed))
        broker = Broker(folder)
        await broker.start()
        stack.push_async_callback(broker.stop)
        url, process = await stack.enter_async_context(daemon(folder, link.address, broker))
        parts = {"cloud": cloud, "link": link, "broker": broker}
        parts["references"] = await references_of(url)
        sizes = []
        for _ in range(_PHASES):
            await phase(minutes * 60 / _PHASES, clients, dice, url, parts, tally)
            sizes.append(size_of(process))
            print(f"idle: {in_words(sizes[-1:])}", flush=True)
        report(tally, sizes)
        if process.returncode is not None:
            tally.fault(f"the daemon ended with {process.returncode}")
    return tally


def in_words(sizes: list[tuple[int, int]]) -> str:
    """Memory and open files, one after another."""
    memory = ", ".join(f"{size / 2**20:.0f}" for size, _ in sizes)
    return f"memory {memory} MiB, files {', '.join(str(files) for _, files in sizes)}"


def report(tally: Tally, sizes: list[tuple[int, int]]) -> None:
    """Print what happened; growth beyond the bounds is a fault."""
    before, after = sizes[0], sizes[-1]
    console = Console(highlight=False)
    for name, count in sorted(tally.counts.items()):
        console.print(f"{count:6} {name}")
    console.print(in_words(sizes))
    if after[0] > before[0] + _GROWTH_BYTES:
        tally.fault("memory grew")
    if after[1] > before[1] + _GROWTH_FILES:
        tally.fault("open files grew")
    console.print(f"{len(tally.faults)} faults")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tally = asyncio.run(soak(arguments.minutes, arguments.clients, arguments.seed))
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
