"""The model's rate against the kernel's token bucket, where root and the kernel allow it."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import ExitStack

import pytest

from benchmarks.kernel_shaper import (
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    available,
    shaped_by_kernel,
)
from benchmarks.link_probe import far_end, upload_mbit
from simulator.link_spec import DirectionSpec, LinkSpec
from simulator.shaped_proxy import ShapedProxy

RATE_MBIT = 20.0
SIZE = 40 * 65_536
QUEUE_BYTES = 256_000


@pytest.mark.alone
@pytest.mark.skipif(not available(), reason="needs root, ip and tc")
async def test_the_model_carries_what_tbf_carries() -> None:
    way = DirectionSpec(
        rate_mbit=RATE_MBIT,
        queue_bytes=QUEUE_BYTES,
        mtu_bytes=FRAME_BYTES,
        header_bytes=FRAME_HEADER_BYTES,
    )
    with ExitStack() as stack:
        try:
            kernel = stack.enter_context(shaped_by_kernel(RATE_MBIT, QUEUE_BYTES))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"the kernel lacks what it takes: {error}")
        by_kernel = await asyncio.to_thread(upload_mbit, kernel, SIZE)
    with far_end() as target:
        async with ShapedProxy(target, LinkSpec(up=way)) as proxy:
            by_model = await asyncio.to_thread(upload_mbit, proxy.address, SIZE)
    assert by_model == pytest.approx(by_kernel, rel=0.15)
