"""docker-compose.yml for real: images built, stack up, cloud killed in the middle of an answer.

Opt in with ``make test-docker`` (root, Linux, some ten minutes); it needs what
``tests/docker/docker_harness.py`` lists and no image registry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.docker.docker_harness import (
    MINUTES,
    Docker,
    arguments_of,
    container,
    engine,
    health,
    kill_container,
    missing_tools,
    query,
    read_some,
    stack,
    wait_until,
)

OPTED_IN = os.environ.get("TANDEM_DOCKER_TESTS") == "1"
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not OPTED_IN, reason="TANDEM_DOCKER_TESTS=1 runs them"),
    pytest.mark.skipif(
        sys.platform != "linux" or os.getuid() != 0, reason="a Docker engine needs root on Linux"
    ),
]
PROMPT = "Why is the sky blue?"
# every word is asked of the cloud, one after the other
ASKING = ["--threshold", "1", "--schedule", "blocking", "--context", "float32",
          "--precision", "float32", "--max-tokens", "1500"]  # fmt: skip


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    if missing := missing_tools():
        pytest.fail(f"install first: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("compose")
    with engine() as docker, stack(docker, folder) as up:
        wait_until(lambda: health(up, "cloud") == "healthy", 3 * MINUTES)
        yield up


def test_the_edge_image_holds_no_torch_and_the_cloud_image_no_onnxruntime(compose: Docker) -> None:
    for image, absent in (("tandem-edge:test", "torch"), ("tandem-cloud:test", "onnxruntime")):
        code = f"import importlib.util as u; print(u.find_spec({absent!r}))"
        said = compose("run", "--rm", "--entrypoint", "python3", image, "-c", code).stdout
        assert said.strip() == "None"


@pytest.mark.parametrize("service", ["cloud", "broker", "prometheus"])
def test_services_are_confined(compose: Docker, service: str) -> None:
    name = container(compose, service)
    assert compose.inspect(name, "{{.HostConfig.ReadonlyRootfs}}") == "true"
    assert compose.inspect(name, "{{.HostConfig.CapDrop}}") == "[ALL]"
    assert int(compose.inspect(name, "{{.HostConfig.Memory}}")) > 0
    user = compose.inspect(name, "{{.Config.User}}").partition(":")[0]
    assert user not in ("", "0", "root")


def test_an_answer_comes_through_the_stack(compose: Docker) -> None:
    done = compose(*arguments_of(PROMPT, [*ASKING[:-1], "12"]))
    assert done.stdout.strip()
    assert "cloud 100%" in done.stderr


def test_without_a_token_the_cloud_answers_nothing(compose: Docker) -> None:
    stranger = Docker(compose.environment | {"TANDEM_TOKEN": ""}, compose.folder)
    done = stranger(*arguments_of(PROMPT, ASKING), check=False)
    assert done.returncode == 3, done.stderr
    assert "token" in done.stderr


def test_a_killed_cloud_comes_back_and_the_answer_ends_as_it_would_have(compose: Docker) -> None:
    cloud = container(compose, "cloud")
    undisturbed = compose(*arguments_of(PROMPT, ASKING)).stdout.encode()
    assert compose.inspect(cloud, "{{.RestartCount}}") == "0"

    edge = compose.start(*arguments_of(PROMPT, ASKING))
    assert edge.stdout is not None
    try:
        text = read_some(edge.stdout, len(undisturbed) // 10)
        kill_container(compose, cloud)
        rest, said = edge.communicate(timeout=2 * MINUTES)
    finally:
        edge.kill()
        edge.wait()
    assert edge.returncode == 0, said.decode()
    # each word needs the cloud: an answer that ends after a restart was waiting for it
    assert compose.inspect(cloud, "{{.RestartCount}}") == "1"
    assert text + rest == undisturbed
    wait_until(lambda: health(compose, "cloud") == "healthy", 3 * MINUTES)


def test_the_broker_asks_for_tls_a_user_and_keeps_devices_apart(compose: Docker) -> None:
    wait_until(lambda: health(compose, "broker") == "healthy", 2 * MINUTES)

    def publish(*options: str) -> int:
        return compose(
            "compose", "exec", "-T", "broker", "mosquitto_pub", "-h", "localhost", "-p", "8883",
            "-t", "tandem/kitchen/state", "-m", "on", "-V", "mqttv5", "-q", "1", *options,
            check=False,
        ).returncode  # fmt: skip

    ca = ["--cafile", "/mosquitto/secrets/ca.pem"]
    assert publish(*ca, "-u", "kitchen", "-P", "secret") == 0
    assert publish(*ca, "-u", "kitchen", "-P", "wrong") != 0
    assert publish(*ca) != 0
    assert publish("-u", "kitchen", "-P", "secret") != 0


def test_prometheus_reads_the_clouds_metrics(compose: Docker) -> None:
    def is_up() -> bool:
        samples = query(compose, 'up{job="tandem-cloud"}')
        return [sample["value"][1] for sample in samples] == ["1"]

    wait_until(is_up, MINUTES)
