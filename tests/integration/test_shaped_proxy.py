"""The shaped proxy on real sockets.  Bounds are wide: how exact it is, the benchmark says."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
import pytest

from shared.errors import ConfigurationError, LinkError
from simulator import link_control
from simulator.link_control import LinkControl
from simulator.link_presets import preset
from simulator.link_spec import BurstLoss, DirectionSpec, LinkSpec
from simulator.packet_trace import MAX_DIGITS, MAX_OPPORTUNITIES, Trace
from simulator.shaped_proxy import ShapedProxy, parse_address

SECONDS = 30.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def both(**fields: Any) -> LinkSpec:
    way = DirectionSpec(**fields)
    return LinkSpec(up=way, down=way)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxied(link: LinkSpec, handler: Handler = echo, seed: int = 0) -> AsyncIterator[Any]:
    """A service that ``handler`` serves, and a proxy before it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with asyncio.timeout(SECONDS):
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        target = "{}:{}".format(*server.sockets[0].getsockname())
        async with ShapedProxy(target, link, seed=seed) as proxy:
            yield proxy
        server.close()


async def connect(proxy: ShapedProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    start = time.perf_counter()
    writer.write(b"ping")
    await reader.readexactly(4)
    return time.perf_counter() - start


async def test_bytes_arrive_unchanged_in_order_over_a_bad_link() -> None:
    spec = both(
        delay_ms=2, rate_mbit=50, jitter_ms=2, loss=0.01, queue_bytes=20_000, window_bytes=100_000
    )
    noise = np.random.default_rng(7)

    async def one(proxy: ShapedProxy, data: bytes) -> None:
        reader, writer = await connect(proxy)

        async def say() -> None:
            for start in range(0, len(data), 9_973):
                writer.write(data[start : start + 9_973])
                await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(say())
            heard = tasks.create_task(reader.read())
        assert heard.result() == data
        writer.close()

    async with proxied(spec, seed=3) as proxy:
        async with asyncio.TaskGroup() as tasks:
            for size in (1, 100_000, 300_000, 300_000):
                tasks.create_task(one(proxy, noise.bytes(size)))
        stats = proxy.stats()
    assert stats.up.lost + stats.down.lost > 0, "the link was bad"
    assert stats.up.delivered_bytes == stats.up.sent_bytes
    assert stats.connections_total == 4


@pytest.mark.alone
async def test_a_round_trip_takes_what_was_configured() -> None:
    async with proxied(both(delay_ms=20)) as proxy:
        reader, writer = await connect(proxy)
        took = [await round_trip(reader, writer) for _ in range(12)]
        writer.close()
    assert took[0] >= 0.080, "the handshake costs a round trip before the first byte"
    assert min(took[1:]) >= 0.040
    assert statistics.quantiles(took[1:], n=4)[0] <= 0.055, "the rest may meet a busy machine"


@pytest.mark.alone
async def test_goodput_is_the_configured_rate() -> None:
    size = 1_000_000

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        start = time.perf_counter()
        await reader.readexactly(size)
        writer.write(repr(size * 8e-6 / (time.perf_counter() - start)).encode())

    async with proxied(both(delay_ms=5, rate_mbit=10), sink) as proxy:
        reader, writer = await connect(proxy)
        writer.write(bytes(size + 1))
        assert float(await reader.read()) == pytest.approx(10, rel=0.15)
        writer.close()


@pytest.mark.alone
async def test_two_connections_share_the_rate() -> None:
    size = 250_000

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(size)
        writer.write(b"!")

    async def fill(proxy: ShapedProxy) -> float:
        reader, writer = await connect(proxy)
        start = time.perf_counter()
        writer.write(bytes(size))
        await reader.readexactly(1)
        writer.close()
        return time.perf_counter() - start

    async with proxied(both(rate_mbit=8, queue_bytes=30_000), sink) as proxy:
        took = await asyncio.gather(fill(proxy), fill(proxy))
    # half a megabyte at a megabyte a second, in turns
    assert max(took) == pytest.approx(0.5, rel=0.2)
    assert min(took) > 0.35, "nobody had the link alone"


async def test_a_closed_half_leaves_the_other_open() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.read())

    async with proxied(both(delay_ms=5), answer_at_the_end) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"you said hello"
        writer.close()


async def test_a_target_that_is_not_there_resets_the_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = "{}:{}".format(*free.getsockname())
        async with asyncio.timeout(SECONDS), ShapedProxy(target, both(delay_ms=5)) as proxy:
            reader, writer = await connect(proxy)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
            assert proxy.stats().connections_refused == 1


async def test_a_target_that_cannot_be_looked_up_resets_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_args: Any, **_fields: Any) -> Any:
        raise UnicodeError("label empty or too long")

    async with asyncio.timeout(SECONDS), ShapedProxy("example.invalid:80", both()) as proxy:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
        reader, writer = await connect(proxy)  # by number: it looks nothing up
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        assert proxy.stats().connections_refused == 1


async def test_a_name_with_several_addresses_gets_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def both_addresses(_host: str, port: int, **_fields: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both_addresses)
    async with (
        asyncio.timeout(SECONDS),
        ShapedProxy("127.0.0.1:1", both(), listen="two.invalid:0") as proxy,
    ):
        _, port = parse_address(proxy.address, "address")
        for address in ("127.0.0.1", "127.0.0.2"):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
        second = ShapedProxy("127.0.0.1:1", both(), listen=f"two.invalid:{port}")
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await second.__aenter__()


@pytest.mark.alone
async def test_an_outage_holds_bytes_and_keeps_connections() -> None:
    async with proxied(both(delay_ms=1)) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        proxy.outage(0.3)
        assert 0.3 <= await round_trip(reader, writer) <= 0.6
        assert await round_trip(reader, writer) <= 0.1
        assert proxy.stats().connections_open == 1
        writer.close()


async def test_a_reset_reaches_both_ends() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await reader.readexactly(4))
            await reader.readexactly(1)
        except OSError as error:
            ended.set_result(type(error).__name__)

    async with proxied(both(), wait) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert await ended == "ConnectionResetError"
        writer.close()
        assert proxy.stats().connections_reset == 1


async def test_a_client_that_is_gone_is_told_to_the_service_after_its_last_bytes() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        data = await reader.readexactly(4)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        heard.set_result(data)

    async with proxied(both(delay_ms=20), wait) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        writer.write(b"last")
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        writer.transport.abort()
        assert await heard == b"last"


@pytest.mark.alone
async def test_the_link_changes_while_connections_are_up() -> None:
    async with proxied(both(delay_ms=30)) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        assert await round_trip(reader, writer) >= 0.060
        proxy.set_link(both(delay_ms=1))
        assert proxy.link == both(delay_ms=1)
        await round_trip(reader, writer)
        assert await round_trip(reader, writer) < 0.050
        writer.close()


async def test_a_change_does_not_end_an_outage() -> None:
    async with proxied(both(delay_ms=1)) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        proxy.outage(0.3)
        proxy.set_link(both())
        assert await round_trip(reader, writer) >= 0.3
        writer.close()


async def test_memory_is_bounded_when_nothing_passes() -> None:
    async with proxied(both(rate_mbit=10, queue_bytes=50_000)) as proxy:
        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        proxy.outage(3_600)
        writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.drain()
        assert 50_000 <= proxy.stats().held_bytes <= 50_000 + (256 << 10) + 3_000
        writer.transport.abort()


async def test_memory_is_bounded_when_the_service_does_not_read() -> None:
    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.wait_closed()

    window = 100_000
    async with proxied(both(window_bytes=window), deaf) as proxy:
        _, writer = await connect(proxy)
        writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.drain()
        assert proxy.stats().held_bytes <= window + (256 << 10)
        writer.transport.abort()
        proxy.reset()


async def test_grpc_streams_run_through_a_phone_link() -> None:
    async def repeat(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(repeat)
    handler = grpc.method_handlers_generic_handler("test.Echo", {"Run": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sent = [bytes([n]) * 3_000 for n in range(20)]
    async with (
        asyncio.timeout(SECONDS),
        ShapedProxy(f"127.0.0.1:{port}", preset("4g"), seed=1) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        call = channel.stream_stream("/test.Echo/Run")(iter(sent))
        assert [answer async for answer in call] == sent
        assert proxy.stats().up.delivered_bytes > 60_000
    await server.stop(None)


async def test_addresses_are_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"target.*HOST:PORT"):
        ShapedProxy("nowhere", both())
    async with ShapedProxy("127.0.0.1:1", both()) as proxy:
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await ShapedProxy("127.0.0.1:1", both(), listen=proxy.address).__aenter__()
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await LinkControl(proxy, proxy.address).__aenter__()
        with pytest.raises(ConfigurationError, match="not loopback"):
            LinkControl(proxy, "192.0.2.1:80")
        with pytest.raises(LinkError, match="outage"):
            proxy.outage(-1)


@pytest.mark.parametrize(
    "text",
    ["a..b:80", ".a:80", f"{'x' * 64}:80", "a\0b:80", "\udcff:80", "[]:80", ":80", "a:65536"],
)
def test_an_address_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(LinkError, match="target"):
        parse_address(text, "target")


def test_addresses_of_every_kind_are_taken() -> None:
    assert parse_address("[::1]:80", "target") == ("::1", 80)
    assert parse_address("bücher.example.:0", "target") == ("bücher.example.", 0)


async def request(
    address: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        wanted = urllib.request.Request(
            f"http://{address}{path}", data=body, method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(wanted, timeout=SECONDS) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(ask)


async def test_the_control_api_steers_the_proxy() -> None:
    async with proxied(both()) as proxy, LinkControl(proxy) as control:
        where = control.address
        status, link = await request(where, "GET", "/link")
        assert (status, link) == (200, both().model_dump(mode="json"))
        status, link = await request(where, "PUT", "/link", b'{"preset": "4g"}')
        assert (status, link["up"]["rate_mbit"]) == (200, 12)
        assert proxy.link == preset("4g")
        status, _ = await request(where, "PUT", "/link", b'{"up": {"delay_ms": 1}}')
        assert (status, proxy.link.up.delay_ms) == (200, 1)

        reader, writer = await connect(proxy)
        await round_trip(reader, writer)
        assert await request(where, "POST", "/outage", b'{"seconds": 0.2}') == (
            200,
            {"seconds": 0.2},
        )
        await round_trip(reader, writer)
        status, stats = await request(where, "GET", "/stats")
        assert (stats["connections_open"], stats["up"]["delivered_bytes"]) == (1, 8 + 2)
        assert await request(where, "POST", "/reset") == (200, {"reset": 1})
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("PUT", "/link", b'{"preset": "6g"}', "'6g'"),
        ("PUT", "/link", b'{"up": {"rate": 1}}', "link.up.rate"),
        ("PUT", "/link", b"{}", "preset"),
        ("PUT", "/link", b"[1]", "object"),
        ("PUT", "/link", b"\xff", "no JSON"),
        ("PUT", "/link", b"[" * 100_000, "no JSON"),
        (
            "PUT",
            "/link",
            b'{"up": {"trace": {"name": "t", "opportunities_ms": [1' + b"0" * 400 + b"]}}}",
            "ends before",
        ),
        ("POST", "/outage", b'{"seconds": 0}', "more than 0"),
        ("POST", "/outage", b'{"seconds": true}', "number"),
        ("POST", "/outage", b'{"seconds": NaN}', "more than 0"),
        ("POST", "/outage", b'{"minutes": 1}', "number"),
    ],
)
async def test_the_control_api_refuses_bad_input(
    method: str, path: str, body: bytes, message: str
) -> None:
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        status, answer = await request(control.address, method, path, body)
        assert status == 422
        assert message in answer["error"]
        assert proxy.link == both()


async def test_the_same_seed_makes_the_same_noise_again() -> None:
    link = both(jitter_ms=1, burst_loss=BurstLoss(good_ms=1, bad_ms=1))
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        body = link.model_dump_json().encode()

        async def put(query: str) -> list[float]:
            """The noise, as far as it does not depend on when packets come."""
            answer = await request(control.address, "PUT", f"/link{query}", body)
            assert answer == (200, link.model_dump(mode="json"))
            found: list[float] = []
            for way in (proxy._link.up, proxy._link.down):
                found += [way._jitter._level, way._loss._sojourn(), way._loss._noise.random()]
            assert len(set(found)) == 6, "each has chance of its own"
            return found

        first, other, unseeded = await put("?seed=7"), await put("?seed=8"), await put("")
        assert first not in (other, unseeded)
        assert await put("?seed=7") == first
        assert await put(f"?seed={2**64 - 1}") != first


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("seed=", "whole number"),
        ("seed=-1", "whole number"),
        ("seed=1.5", "whole number"),
        ("seed=x", "whole number"),
        ("seed=%D9%A3", "whole number"),
        (f"seed={2**64}", "above"),
        (f"seed={10**30}", "whole number"),
        ("seed=1&seed=1", "twice"),
        ("sede=1", "'sede'"),
    ],
)
async def test_a_bad_seed_is_refused(query: str, message: str) -> None:
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        status, answer = await request(
            control.address, "PUT", f"/link?{query}", b'{"preset": "4g"}'
        )
        assert status == 400
        assert message in answer["error"]
        assert proxy.link == both()


async def test_a_pair_of_long_traces_passes_over_the_control_api() -> None:
    late = 10**MAX_DIGITS - 1
    trace = Trace(name="long", opportunities_ms=(late,) * 600_000)
    body = LinkSpec(up=DirectionSpec(trace=trace), down=DirectionSpec(trace=trace))
    sent = body.model_dump_json().encode()
    assert len(sent) > 16 << 20
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        status, _ = await request(control.address, "PUT", "/link", sent)
        assert (status, proxy.link) == (200, body)
    each = len(json.dumps([late, late])) - len(json.dumps([late]))
    assert 2 * MAX_OPPORTUNITIES * each < link_control._MAX_BODY_BYTES, "the longest pair fits"


async def test_a_body_without_bound_is_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_control, "_MAX_BODY_BYTES", 1_000)
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        status, answer = await request(control.address, "PUT", "/link", b" " * 1_001)
        assert status == 413
        assert "at most 1,000 bytes: room for two traces of 5,000,000" in answer["error"]


async def test_the_control_api_refuses_web_pages() -> None:
    async with ShapedProxy("127.0.0.1:1", both()) as proxy, LinkControl(proxy) as control:
        status, _ = await request(control.address, "POST", "/reset", Origin="https://example.com")
        assert status == 403
