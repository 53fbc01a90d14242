"""docker-compose.yml for real: images built, stack up, cloud killed in the middle of an answer.

Opt in with ``make test-docker`` (root, Linux, some five minutes the first time); it needs what
``tests/docker/docker_engine.py`` lists and no image registry.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.docker.compose_stack import (
    BROKER_PASSWORD,
    BROKER_USER,
    CLOUD_IMAGE,
    EDGE_IMAGE,
    Stack,
    read_some,
    stack,
)
from tests.docker.docker_engine import (
    MINUTES,
    ROOT,
    engine,
    missing_tools,
    terminated_as_interrupted,
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
ASKING = ("--threshold", "1", "--schedule", "blocking", "--context", "float32",
          "--precision", "float32", "--max-tokens")  # fmt: skip
SHORT, LONG = (*ASKING, "12"), (*ASKING, "1500")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if missing := missing_tools():
        pytest.fail(f"install first: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("compose")
    with terminated_as_interrupted(), engine() as docker, stack(docker, folder) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(up: Stack) -> bytes:
    """The long answer of a cloud that nobody kills."""
    done = up.ask(PROMPT, *LONG)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


def needs_grafana(up: Stack) -> None:
    if "grafana" not in up.services:
        pytest.skip("no image of Grafana: no registry is reached, and Debian has no package of it")


# ---- what the containers are ---------------------------------------------------------------------


@pytest.mark.parametrize("service", ["cloud", "broker", "prometheus", "grafana"])
def test_services_are_healthy_and_confined(up: Stack, service: str) -> None:
    if service == "grafana":
        needs_grafana(up)
    assert up.is_healthy(service)
    assert 0 not in up.users(service)
    assert up.inspect(service, "{{.HostConfig.ReadonlyRootfs}}") == "true"
    assert up.inspect(service, "{{.HostConfig.CapDrop}}") == "[ALL]"
    assert up.inspect(service, "{{.HostConfig.SecurityOpt}}") == "[no-new-privileges:true]"
    assert int(up.inspect(service, "{{.HostConfig.Memory}}")) > 0


def test_the_edge_image_holds_no_torch_and_the_cloud_image_no_onnxruntime(up: Stack) -> None:
    for image, absent in ((EDGE_IMAGE, "torch"), (CLOUD_IMAGE, "onnxruntime")):
        code = f"import importlib.util as u, os; print(u.find_spec({absent!r}), os.getuid())"
        said = up.docker("run", "--rm", "--entrypoint", "python3", image, "-c", code).stdout
        assert said.split() == ["None", "10001"]


@pytest.mark.parametrize("path", ["/opt/tandem/x", "/bundle/x", "/secrets/x"])
def test_the_cloud_cannot_write_where_its_program_model_and_keys_are(up: Stack, path: str) -> None:
    done = up.compose("exec", "-T", "cloud", "touch", path, check=False)
    assert "Read-only file system" in done.stderr


# ---- answers -------------------------------------------------------------------------------------


def test_an_answer_comes_through_the_stack(up: Stack) -> None:
    done = up.ask(PROMPT, *SHORT)
    assert done.stdout.strip()
    assert "cloud 100%" in done.stderr
    assert up.cloud_counts("tandem_cloud_escalations_total", "try") >= 12


def test_an_edge_outside_the_stack_gets_the_same_answer(up: Stack) -> None:
    address = up.docker.environment["CLOUD_LISTEN"]
    authority = str(up.project / "docker/secrets/edge/ca.pem")
    done = subprocess.run(
        [sys.executable, "-m", "shared.cli", "generate", PROMPT, *SHORT, "--cloud", address,
         "--cloud-ca", authority, "--bundle", str(up.project / "bundle")],
        env=os.environ | {"TANDEM_TOKEN": up.docker.environment["TANDEM_TOKEN"]},
        cwd=ROOT, capture_output=True, text=True, timeout=2 * MINUTES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == up.ask(PROMPT, *SHORT).stdout


def test_without_a_token_the_cloud_answers_nothing(up: Stack) -> None:
    done = up.without_token().ask(PROMPT, *SHORT)
    assert done.returncode == 3, done.stderr
    assert "token" in done.stderr
    assert not done.stdout.strip()


def test_a_killed_cloud_comes_back_and_the_answer_ends_as_it_would_have(
    up: Stack, undisturbed: bytes
) -> None:
    before = int(up.inspect("cloud", "{{.RestartCount}}"))
    edge = up.start_asking(PROMPT, *LONG)
    assert edge.stdout is not None
    try:
        text = read_some(edge.stdout, len(undisturbed) // 10)
        up.kill("cloud")
        rest, said = edge.communicate(timeout=2 * MINUTES)
    finally:
        edge.kill()
        edge.wait()
    assert edge.returncode == 0, said.decode()
    assert text + rest == undisturbed
    assert int(up.inspect("cloud", "{{.RestartCount}}")) == before + 1
    # nobody else asked: the new cloud took over the answer
    assert up.cloud_counts("tandem_cloud_escalations_total", "try") > 0
    wait_until(lambda: up.is_healthy("cloud"), 3 * MINUTES)


def test_a_cloud_that_is_replaced_says_not_serving_and_the_answer_ends_as_it_would_have(
    up: Stack, undisturbed: bytes
) -> None:
    assert up.cloud_says() == (0, "localhost:7420 serves\n")
    edge = up.start_asking(PROMPT, *LONG)
    assert edge.stdout is not None
    try:
        text = read_some(edge.stdout, 1)
        asking = up.docker(
            "ps", "--quiet", "--filter", f"ancestor={EDGE_IMAGE}", "--filter", "status=running"
        ).stdout.strip()
        up.docker("pause", asking)  # it holds its stream open: the cloud has something to wait for
        stopping = up.docker.start("compose", "stop", "cloud")
        try:
            wait_until(lambda: up.cloud_says()[0] != 0, MINUTES)
            code, words = up.cloud_says()
        finally:
            up.docker("unpause", asking)
            stopping.communicate(timeout=MINUTES)
        assert (code, "says NOT_SERVING" in words) == (4, True), words
        # it drained: its own end, not the engine's patience
        assert up.inspect("cloud", "{{.State.ExitCode}}") == "0"
        up.compose("up", "--detach", "--wait", "--no-build", "--force-recreate", "cloud")
        rest, said = edge.communicate(timeout=2 * MINUTES)
    finally:
        edge.kill()
        edge.wait()
    assert edge.returncode == 0, said.decode()
    assert text + rest == undisturbed


# ---- broker, Prometheus, Grafana -----------------------------------------------------------------


def test_the_broker_asks_for_tls_and_a_user_and_keeps_devices_apart(up: Stack) -> None:
    def publish(topic: str, *options: str) -> tuple[int, str]:
        done = up.compose(
            "exec", "-T", "broker", "mosquitto_pub", "-h", "localhost", "-p", "8883",
            "-t", topic, "-m", "on", "-V", "mqttv5", "-q", "1", *options, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    own, ca = f"tandem/{BROKER_USER}/status", ("--cafile", "/mosquitto/secrets/ca.pem")
    login = ("-u", BROKER_USER, "-P", BROKER_PASSWORD)
    assert publish(own, *ca, *login) == (0, "")
    assert "Not authorized" in publish("tandem/hall/status", *ca, *login)[1]
    assert publish(own, *ca, "-u", BROKER_USER, "-P", "wrong")[0] != 0
    assert publish(own, *ca)[0] != 0
    assert publish(own, *login)[0] != 0


def test_prometheus_reads_what_the_cloud_counts(up: Stack) -> None:
    assert up.ask(PROMPT, *SHORT).returncode == 0
    counted = up.cloud_counts("tandem_cloud_escalations_total", "try")

    def has_it() -> bool:
        samples = up.prometheus('tandem_cloud_escalations_total{job="tandem-cloud",tenant="try"}')
        return [float(sample["value"][1]) for sample in samples] == [counted]

    wait_until(has_it, MINUTES)
    (alive,) = up.prometheus('up{job="tandem-cloud"}')
    assert alive["value"][1] == "1"


def test_every_query_of_the_dashboard_gets_its_samples(up: Stack) -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/tandem.json").read_text())
    queries = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    # has none before the first of its kind: no label is known
    rare = re.compile("tandem_cloud_(evictions|over_quota|errors)_total")

    def all_have_samples() -> bool:
        silent = {
            query for query in queries if not up.prometheus(query.replace("$__rate_interval", "1m"))
        }
        return all(rare.search(query) for query in silent)

    assert up.ask(PROMPT, *SHORT).returncode == 0
    wait_until(all_have_samples, MINUTES)


def test_grafana_shows_the_dashboard_to_its_admin_alone(up: Stack) -> None:
    needs_grafana(up)
    port = up.docker.environment["GRAFANA_PORT"]
    url = f"http://127.0.0.1:{port}/api/dashboards/uid/tandem-cloud"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    password = (up.project / "docker/secrets/grafana/password").read_text().strip()
    login = base64.b64encode(f"admin:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["dashboard"]["title"] == "Tandem cloud"
