"""``tandem edge serve`` as a user runs it: a process, its answers, its log, its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud.auth import add_token
from cloud.server import CloudServer
from tests.cloud_harness import WAIT_SECONDS, settings_for, tiny_bundle
from tests.edge_harness import BreakableLink
from tests.edge_process import EdgeProcess, events_of, question

SECRET = "s3cret-of-the-test"


def tandem(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shared.cli", "edge", *arguments],
        capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@asynccontextmanager
async def over_a_slow_link(**settings: Any) -> AsyncIterator[EdgeProcess]:
    """A daemon whose answers take seconds, for hardly a guess of its is right, and to hear so
    takes 0.1 s."""
    async with (
        CloudServer(settings_for(tiny_bundle())) as cloud,
        BreakableLink(cloud.address, delay=lambda: 0.05) as link,
        EdgeProcess(
            cloud=link.address, mode="collaborative", threshold=1.0, private=True, **settings
        ) as edge,
    ):
        yield edge


async def test_it_says_when_it_is_ready_answers_and_ends_with_a_signal() -> None:
    async with EdgeProcess(log_format="text") as edge, edge.client() as client:
        assert edge.log == (
            f"listening on {edge.url}  (open it in a browser; OpenAI clients: base URL "
            f"{edge.url}/v1)\n"
        )
        answer = await client.post("/v1/chat/completions", json=question())
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 8
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        edge.signal()
        assert await edge.ended() == 0
        assert not edge.port_file.exists()


async def test_an_answer_that_is_being_made_is_finished_after_a_signal() -> None:
    async with over_a_slow_link(drain_seconds=WAIT_SECONDS) as edge, edge.client() as client:
        body = question(stream=True, max_tokens=40)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            events = events_of(response)
            await anext(events)
            edge.signal()
            assert (await edge.logged("draining"))["active"] == 1
            refused = await client.post("/v1/chat/completions", json=question())
            assert refused.status_code == 503
            assert (await client.get("/health")).status_code == 503
            *chunks, last, done = [event async for event in events]
        assert done == "[DONE]"
        assert json.loads(last)["choices"][0]["finish_reason"] in ("length", "stop")
        assert len(chunks) > 1
        assert await edge.ended() == 0
        (line,) = edge.events("answer")
        assert line["outcome"] == "finished"


async def test_what_the_drain_cuts_short_ends_with_an_error_not_in_the_void() -> None:
    async with over_a_slow_link(drain_seconds=0.05) as edge, edge.client() as client:
        body = question(stream=True, max_tokens=200)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            events = events_of(response)
            await anext(events)
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json=question()))
            async for samples in _metrics(edge):
                if samples["tandem_edge_waiting_answers"] == 1:
                    break
            edge.signal()
            *_, error, done = [event async for event in events]
        assert done == "[DONE]"
        assert "shut down" in json.loads(error)["error"]["message"]
        assert (await waiting).status_code == 503
        assert await edge.ended() == 0
        assert edge.events("answers cut short")
        assert [line["outcome"] for line in edge.events("answer")] == ["cancelled"]


async def test_a_second_signal_ends_it_at_once() -> None:
    async with over_a_slow_link(drain_seconds=10 * WAIT_SECONDS) as edge, edge.client() as client:
        body = question(stream=True, max_tokens=200)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(events_of(response))
            edge.signal(signal.SIGINT)
            await edge.logged("draining")
            edge.signal(signal.SIGINT)
            assert await edge.ended() == 130


async def test_the_log_has_one_line_an_answer_and_none_of_its_words() -> None:
    async with EdgeProcess(max_tokens=6) as edge, edge.client() as client:
        secret = "marmalade"
        answer = await client.post("/v1/chat/completions", json=question(secret, max_tokens=None))
        said = answer.json()["choices"][0]["message"]["content"]
        line = await edge.logged("answer")
        assert secret not in edge.log
        assert said
        assert said not in edge.log
        usage = answer.json()["usage"]
        assert line["source"] == "api"
        assert line["outcome"] == "finished"
        assert line["finish_reason"] == "length"
        assert line["prompt_tokens"] == usage["prompt_tokens"]
        assert line["answer_tokens"] == usage["completion_tokens"] == 6
        assert sum(line["origins"].values()) == 6
        assert line["mode"] == "standalone"
        assert 0 < line["first_token_seconds"] <= line["seconds"]
        refused = await client.post("/v1/chat/completions", json=question(n=2))
        assert refused.status_code == 400
        assert len(edge.events("answer")) == 1


async def test_the_log_has_the_words_where_the_user_wants_them() -> None:
    async with EdgeProcess(log_prompts=True) as edge, edge.client() as client:
        answer = await client.post("/v1/chat/completions", json=question("marmalade"))
        line = await edge.logged("answer")
        assert "marmalade" in line["prompt"]
        assert line["text"] == answer.json()["choices"][0]["message"]["content"]


async def _metrics(edge: EdgeProcess) -> AsyncIterator[dict[str, float]]:
    """Samples without labels, again and again."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            samples = await edge.metrics()
            yield {name: value for (name, labels), value in samples.items() if not labels}


async def test_metrics_count_what_was_answered() -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as cloud,
        EdgeProcess(cloud=cloud.address, mode="collaborative", threshold=1.0) as edge,
        edge.client() as client,
    ):
        before = await edge.metrics()
        bare: frozenset[tuple[str, str]] = frozenset()
        assert ("tandem_edge_answers_total", bare) not in before
        headers = {"x-tandem-source": "page"}
        for _ in range(2):
            answer = await client.post("/v1/chat/completions", json=question(), headers=headers)
        summary = answer.json()["tandem"]["summary"]
        after = await edge.metrics()

        def value(name: str, **labels: str) -> float:
            return after[f"tandem_edge_{name}", frozenset(labels.items())]

        assert value("answers_total", outcome="finished", source="page") == 2
        assert value("tokens_total", origin="cloud") == 2 * summary["origins"]["cloud"] > 0
        assert value("escalations_total") >= summary["escalations"] > 0
        assert value("uploaded_bytes_total") > summary["uploaded_bytes"] > 0
        assert value("first_token_seconds_count") == 2
        assert value("token_seconds_count") == 2
        assert value("link_up") == 1
        assert 0 < value("rtt_seconds") < WAIT_SECONDS
        assert value("mode", mode="collaborative") == 1
        assert value("mode", mode="auto") == 0
        assert value("serving") == 1
        assert value("active_answers") == value("waiting_answers") == 0


async def test_metrics_can_be_off_and_ask_for_the_key_where_there_is_one() -> None:
    async with EdgeProcess(metrics=False) as edge, edge.client() as client:
        assert (await client.get("/metrics")).status_code == 404
    environment = {"TANDEM_EDGE_API_KEY": SECRET}
    async with EdgeProcess(environment) as edge, edge.client() as client:
        assert (await client.get("/metrics")).status_code == 401
        headers = {"authorization": f"Bearer {SECRET}"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        assert SECRET not in edge.log


def test_config_shows_what_is_set_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(SECRET)
    monkeypatch.setenv("TANDEM_TOKEN", SECRET)
    shown = tandem(
        "config", "--cloud", "localhost:7420", "--api-key-file", str(tmp_path / "key")
    ).stdout
    assert 'cloud = "localhost:7420"  # --cloud' in shown
    assert "# token is set and not shown (TANDEM_TOKEN)" in shown
    assert f'api_key_file = "{tmp_path / "key"}"' in shown
    assert SECRET not in shown
    monkeypatch.delenv("TANDEM_TOKEN")
    assert SECRET not in tandem("config", "--api-key", SECRET).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bundle", "/nowhere"], "tandem prepare"),
        (["--cloud", "localhost:1", "--cloud-ca", "LICENSE"], "not a PEM file"),
        (["--cloud", "localhost:1", "--cloud-ca", "/nowhere.pem"], "cannot be read"),
        (["--api-key-file", "/nowhere.txt"], "cannot be read"),
        (["--host", "192.0.2.1", "--insecure"], "cannot listen on 192.0.2.1:0"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--target-agreement", "0.99", "--cloud", "localhost:1", "--mode", "cloud-only"],
         "no use for target_agreement"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    bundle = ["--bundle", str(tiny_bundle().folder), "--precision", "float32"]
    done = tandem("serve", "--port", "0", *bundle, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_broken_certificate_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
    bundle = ["--bundle", str(tiny_bundle().folder), "--precision", "float32"]
    done = tandem("serve", "--port", "0", *bundle, "--cloud", "h:1", "--cloud-ca", str(broken))
    assert done.returncode == 2
    assert "ca.pem is no certificate that can be used" in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tandem("serve", "--port", str(port), "--bundle", str(tiny_bundle().folder))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in")
    assert "--port" in done.stderr


async def test_systemd_hears_when_it_is_ready_and_when_it_drains(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_SECONDS)
        async with EdgeProcess({"NOTIFY_SOCKET": str(tmp_path / "notify")}) as edge:
            assert await asyncio.to_thread(manager.recv, 100) == b"READY=1"
            edge.signal()
            assert await asyncio.to_thread(manager.recv, 100) == b"STOPPING=1"
            assert await edge.ended() == 0


async def test_a_cloud_that_refuses_us_is_told_at_the_start(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    add_token(tokens, "team")
    async with (
        CloudServer(settings_for(tiny_bundle(), tokens=tokens)) as cloud,
        EdgeProcess({"TANDEM_TOKEN": "wrong"}, cloud=cloud.address) as edge,
    ):
        line = await edge.logged_like("refuses us")
        assert line["level"] == "warning"
        assert "TANDEM_TOKEN" in line["event"]


async def test_a_cloud_that_goes_and_comes_is_in_the_log() -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as cloud,
        BreakableLink(cloud.address) as link,
        EdgeProcess(cloud=link.address) as edge,
    ):
        assert (await edge.logged("the cloud is there"))["cloud"] == link.address
        link.block()
        line = await edge.logged_like("does not answer")
        assert line["level"] == "warning"
        link.unblock()
        async with asyncio.timeout(WAIT_SECONDS):
            while len(edge.events("the cloud is there")) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
