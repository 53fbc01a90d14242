"""Links by name.  ``source`` says where the figures are from, and which are our own choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from shared.errors import LinkError
from simulator.link_spec import BurstLoss, DirectionSpec, LinkSpec, Outage
from simulator.packet_trace import invent_trace

_TRACE_SECONDS = 120


@dataclass(frozen=True)
class Preset:
    """A named link; ``build`` makes it (a trace takes a moment to invent)."""

    name: str
    summary: str
    source: str
    build: Callable[[], LinkSpec]


def _loopback() -> LinkSpec:
    return LinkSpec()


def _plain(
    rtt_ms: float, *, down: tuple[float, int], up: tuple[float, int], jitter_ms: float
) -> Callable[[], LinkSpec]:
    """Half the round trip each way; ``down`` and ``up`` are (Mbit/s, bytes of queue)."""

    def way(rate_mbit: float, queue_bytes: int) -> DirectionSpec:
        return DirectionSpec(
            delay_ms=rtt_ms / 2,
            rate_mbit=rate_mbit,
            queue_bytes=queue_bytes,
            jitter_ms=jitter_ms,
        )

    return lambda: LinkSpec(up=way(*up), down=way(*down))


def _lossy_wifi() -> LinkSpec:
    def way(rate_mbit: float) -> DirectionSpec:
        return DirectionSpec(
            delay_ms=2.5,
            rate_mbit=rate_mbit,
            queue_bytes=250_000,
            jitter_ms=3.0,
            loss=0.005,
            burst_loss=BurstLoss(good_ms=2_000, bad_ms=50, bad_loss=0.5),
        )

    return LinkSpec(up=way(5.0), down=way(10.0))


@cache
def _train() -> LinkSpec:
    tunnels = (Outage(start_s=20, duration_s=4, every_s=45),)
    fades = BurstLoss(good_ms=5_000, bad_ms=150, bad_loss=0.5)
    up, down = (
        DirectionSpec(
            delay_ms=35,
            trace=invent_trace(
                mean_mbit=rate, spread=0.8, memory_s=4, seconds=_TRACE_SECONDS, seed=seed
            ),
            queue_bytes=queue,
            jitter_ms=8,
            loss=0.001,
            burst_loss=fades,
            outages=tunnels,
        )
        for rate, queue, seed in ((3.0, 200_000, 1), (10.0, 500_000, 2))
    )
    return LinkSpec(up=up, down=down)


_CHOICE = "Queue and jitter: round numbers of ours."

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "loopback", "no delay, no limit: what the proxy itself costs", "Nothing.", _loopback
        ),
        Preset(
            "wifi",
            "a good home network",
            "30 down, 15 up: Firefox's throttling profile Wi-Fi. Round trip: a round number of "
            "ours. " + _CHOICE,
            _plain(4, down=(30, 250_000), up=(15, 250_000), jitter_ms=1),
        ),
        Preset(
            "5g",
            "a phone on mid-band 5G",
            "Rates: median of the world, third quarter of 2021 (Ookla: 166.13 down, 21.08 up), "
            "rounded. Round trip of 30 ms: a round number of ours. " + _CHOICE,
            _plain(30, down=(166, 2_000_000), up=(21, 500_000), jitter_ms=3),
        ),
        Preset(
            "4g",
            "a phone on LTE",
            "12 Mbit/s each way and 70 ms: WebPageTest's profile LTE. " + _CHOICE,
            _plain(70, down=(12, 600_000), up=(12, 600_000), jitter_ms=5),
        ),
        Preset(
            "3g",
            "a phone on HSPA",
            "1.6 down, 0.768 up, 300 ms: WebPageTest's profile 3G. " + _CHOICE,
            _plain(300, down=(1.6, 128_000), up=(0.768, 64_000), jitter_ms=15),
        ),
        Preset(
            "dsl",
            "an old telephone line",
            "1.5 down, 0.384 up, 50 ms: WebPageTest's profile DSL. " + _CHOICE,
            _plain(50, down=(1.5, 96_000), up=(0.384, 48_000), jitter_ms=1),
        ),
        Preset(
            "geostationary",
            "a satellite 36,000 km up",
            "Rates: HughesNet's medians in the third quarter of 2021 (Ookla: 19.30 down, 2.54 up), "
            "rounded. Round trip of 600 ms, the figure usual for such links: light alone takes "
            "four times 36,000 km, 480 ms. " + _CHOICE,
            _plain(600, down=(19, 2_000_000), up=(2.5, 400_000), jitter_ms=10),
        ),
        Preset(
            "lossy-wifi",
            "the far end of the garden",
            "Round numbers of ours: 10 down, 5 up, 5 ms, 0.5% lost and fades of 50 ms every 2 s "
            "that lose half. Gilbert and Elliott's bursts are a simplification: measured losses of "
            "802.11 have longer tails (Carvalho et al., IEEE Trans. Consumer Electronics, 2005).",
            _lossy_wifi,
        ),
        Preset(
            "train",
            "LTE in a fast train, with tunnels",
            "Round numbers of ours: 10 down and 3 up on average, wandering (invented traces), "
            "70 ms, fades, and 4 s of nothing every 45 s. That at up to 310 km/h round trips and "
            "losses rise and throughput falls, with interruptions: Li et al., A Longitudinal "
            "Measurement Study of TCP Performance and Behavior in 3G/4G Networks Over High Speed "
            "Rails, 2017.",
            _train,
        ),
    )
}


def preset(name: str) -> LinkSpec:
    """The link called ``name``.

    Raises:
        LinkError: there is none; says which there are.
    """
    found = PRESETS.get(name)
    if found is None:
        raise LinkError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
    return found.build()
