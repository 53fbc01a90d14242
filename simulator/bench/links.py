"""The networks of a benchmark: presets, cells of a round-trip × rate grid, pairs of traces.

Everything here is checked before any process starts; what cannot be is a
:class:`~shared.errors.LinkError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from shared.errors import LinkError
from simulator.link_presets import preset
from simulator.link_spec import DirectionSpec, LinkSpec, Outage, parse_link
from simulator.packet_trace import Trace, load_trace

UNSHAPED = "loopback"
_SMALLEST_QUEUE_BYTES = 256_000


@dataclass(frozen=True)
class BenchLink:
    """A named link; ``rtt_ms`` and ``rate_mbit`` are set for cells of the grid alone."""

    name: str
    spec: LinkSpec
    rtt_ms: float | None = None
    rate_mbit: float | None = None

    @property
    def identity(self) -> str:
        """Tells links apart that have the same name but not the same fields."""
        return hashlib.sha256(self.spec.model_dump_json().encode()).hexdigest()[:16]

    @property
    def summary(self) -> str:
        """What it is like, in words."""
        if self.name == UNSHAPED:
            return "no delay, no limit"
        up, down = _rate(self.spec.up), _rate(self.spec.down)
        rates = f"{up} up and down" if up == down else f"{up} up, {down} down"
        return f"{self.spec.rtt_ms:g} ms round trip, {rates}{_extras(self.spec)}"


def cell(rtt_ms: float, rate_mbit: float) -> BenchLink:
    """Half the round trip each way, the same rate each way, a queue of the bandwidth-delay product
    or 256 kB, whichever is more; no jitter, no loss."""
    product = max(0.0, rtt_ms * rate_mbit * 125)
    way = {
        "delay_ms": rtt_ms / 2,
        "rate_mbit": rate_mbit,
        "queue_bytes": min(1 << 30, max(_SMALLEST_QUEUE_BYTES, round(product))),
    }
    spec = parse_link({"up": way, "down": way})
    return BenchLink(f"{rtt_ms:g}ms-{rate_mbit:g}mbit", spec, rtt_ms, rate_mbit)


def named(name: str) -> BenchLink:
    """The preset of that name."""
    return BenchLink(name, preset(name))


def recorded(up: Path, down: Path, rtt_ms: float) -> BenchLink:
    """A pair of packet-delivery traces; they say nothing of delay, so that is given."""
    ways = {
        name: {"delay_ms": rtt_ms / 2, "trace": load_trace(path), "queue_bytes": 600_000}
        for name, path in (("up", up), ("down", down))
    }
    name = up.stem if up.stem == down.stem else f"{up.stem}+{down.stem}"
    return BenchLink(f"trace-{name}", parse_link(ways))


def choose_links(
    rtts_ms: Sequence[float],
    rates_mbit: Sequence[float],
    presets: Sequence[str],
    traces: Sequence[tuple[Path, Path]],
    trace_rtt_ms: float,
) -> tuple[BenchLink, ...]:
    """The grid by rising round trip, then presets, then traces; each name once."""
    links = [cell(rtt, rate) for rtt in rtts_ms for rate in rates_mbit]
    links += [named(name) for name in presets]
    links += [recorded(up, down, trace_rtt_ms) for up, down in traces]
    names = [link.name for link in links]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LinkError(f"the link {twice} is named twice")
    return tuple(links)


def started_later(spec: LinkSpec, seconds: float) -> LinkSpec:
    """``spec`` as it is ``seconds`` after its beginning, so that answers meet different stretches
    of its traces and outages, and every contender the same ones."""
    return LinkSpec(up=_way_later(spec.up, seconds), down=_way_later(spec.down, seconds))


def _way_later(way: DirectionSpec, seconds: float) -> DirectionSpec:
    outages = tuple(o for old in way.outages if (o := _outage_later(old, seconds)) is not None)
    trace = None if way.trace is None else _trace_later(way.trace, round(seconds * 1e3))
    return way.model_copy(update={"outages": outages, "trace": trace})


def _outage_later(outage: Outage, seconds: float) -> Outage | None:
    start = outage.start_s - seconds
    if outage.every_s is not None and start < 0:  # the rest of one under way is left out
        start += outage.every_s * ceil(-start / outage.every_s)
    if start < 0:
        return None
    return outage.model_copy(update={"start_s": start})


def _trace_later(trace: Trace, milliseconds: int) -> Trace:
    period = trace.opportunities_ms[-1]
    cut = milliseconds % period
    if not cut:
        return trace
    later = [time - cut for time in trace.opportunities_ms if time > cut]
    sooner = [time - cut + period for time in trace.opportunities_ms if time <= cut]
    if not sooner or sooner[-1] < period:  # the length of a round is its last time
        sooner.append(period)
    return Trace(name=trace.name, opportunities_ms=(*later, *sooner))


def _rate(way: DirectionSpec) -> str:
    if way.trace is not None:
        return f"a trace of {way.trace.mean_mbit:.1f} Mbit/s on average"
    return "no limit" if way.rate_mbit is None else f"{way.rate_mbit:g} Mbit/s"


def _extras(spec: LinkSpec) -> str:
    found = []
    if spec.up.jitter_ms or spec.down.jitter_ms:
        found.append("jitter")
    if spec.up.loss or spec.down.loss or spec.up.burst_loss or spec.down.burst_loss:
        found.append("loss")
    if spec.up.outages or spec.down.outages:
        found.append("outages")
    return f", with {' and '.join(found)}" if found else ""
