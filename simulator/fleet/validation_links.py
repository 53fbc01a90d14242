"""A shaped link for each of many edges, all of them in one process of its own (``python -m``).

Each edge has a link to itself, as edges in different homes have.  The process is not the edges':
their work would hold its timers up.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from typing import Any

from simulator.bench.worker_process import claim_stdout
from simulator.link_spec import LinkSpec
from simulator.precise_loop import new_event_loop
from simulator.shaped_proxy import ShapedProxy


async def serve_links(target: str, spec: LinkSpec, count: int, seed: int, replies: Any) -> None:
    """Say where the links listen, as ``{"addresses": [...]}``, and carry until the input ends."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(ShapedProxy(target, spec, seed=seed + number))
            for number in range(count)
        ]
        addresses = [proxy.address for proxy in proxies]
        print(json.dumps({"addresses": addresses}), file=replies, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main(arguments: list[str]) -> None:
    """``TARGET LINK COUNT SEED``; the link as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent closes the input
    replies = claim_stdout()
    target, link, count, seed = arguments
    spec = LinkSpec.model_validate_json(link)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve_links(target, spec, int(count), int(seed), replies))


if __name__ == "__main__":
    main(sys.argv[1:])
