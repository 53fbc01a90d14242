"""``tandem cloud health`` against real servers: what a container's health check sees."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from cloud.cli import app
from cloud.health_probe import check_health
from cloud.server import CloudServer
from shared.errors import CloudUnavailableError, ConfigurationError
from tests.cloud_harness import settings_for, tiny_bundle

SCRIPT = Path(__file__).parents[2] / "docker/make-certificates"
BUNDLE = tiny_bundle()


async def test_a_cloud_that_serves_is_healthy_and_one_that_stopped_is_not() -> None:
    async with CloudServer(settings_for(BUNDLE)) as server:
        address = server.address
        await asyncio.to_thread(check_health, address)
    with pytest.raises(CloudUnavailableError, match=r"does not answer .(UNAVAILABLE|DEADLINE)"):
        await asyncio.to_thread(check_health, address, seconds=0.3)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
async def test_tls_and_client_certificates_as_the_compose_file_has_them(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    await asyncio.to_thread(lambda: subprocess.run([SCRIPT, "--out", secrets], check=True))
    cloud, edge = secrets / "cloud", secrets / "edge"
    settings = settings_for(
        BUNDLE,
        tls_cert=cloud / "cloud.pem",
        tls_key=cloud / "cloud.key",
        client_ca=cloud / "ca.pem",
    )
    async with CloudServer(settings) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        await asyncio.to_thread(
            check_health,
            address,
            ca=edge / "ca.pem",
            certificate=edge / "client.pem",
            key=edge / "client.key",
        )
        with pytest.raises(CloudUnavailableError):  # without a certificate
            await asyncio.to_thread(check_health, address, ca=edge / "ca.pem", seconds=1)


async def test_a_cloud_that_drains_says_so() -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(CloudUnavailableError, match="says NOT_SERVING"):
            await asyncio.to_thread(check_health, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


async def test_the_command_says_it_in_words() -> None:
    async with CloudServer(settings_for(BUNDLE)) as server:
        said = await asyncio.to_thread(CliRunner().invoke, app, ["health", server.address])
    assert said.exit_code == 0
    assert said.output.strip() == f"{server.address} serves"


def test_options_that_lack_their_partner_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="come together"):
        check_health("localhost:1", certificate=tmp_path)
    with pytest.raises(ConfigurationError, match="name the cloud's CA"):
        check_health("localhost:1", certificate=tmp_path, key=tmp_path)
