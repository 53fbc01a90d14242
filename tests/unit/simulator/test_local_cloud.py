"""The cloud as a child process."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest

from shared.errors import CloudUnavailableError
from simulator.local_cloud import LocalCloud
from tests.cloud_harness import eventually, tiny_bundle


async def test_a_cloud_that_is_cancelled_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle().folder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cloud = LocalCloud(bundle, threads=1)
    starting = asyncio.create_task(cloud.__aenter__())
    await eventually(lambda: cloud._process is not None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert cloud._process is not None
    assert cloud._process.returncode is not None
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_a_cloud_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CloudUnavailableError, match=r"did not start: no bundle at"):
        async with LocalCloud(tmp_path):
            pass
