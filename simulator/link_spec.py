"""What a simulated link is like: frozen, validated, in the units people say them in.

Delays are milliseconds, rates megabits (10^6 bits) a second, sizes bytes, outages seconds since
the link was made.  An unknown key, a value out of range or a link that could never deliver
anything fails by name, as :class:`~shared.errors.LinkError` from :func:`parse_link`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import LinkError
from simulator.packet_trace import Trace

Milliseconds = Annotated[float, Field(ge=0, le=60_000)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    """Base of every part of a link: immutable, and deaf to no key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BurstLoss(Frozen):
    """Gilbert-Elliott loss in continuous time: the channel is good or bad for a while.

    Both sojourns are exponential with the given means; a packet is lost with the state's
    probability at the moment it leaves the queue.  Good is :attr:`DirectionSpec.loss`.
    """

    good_ms: Annotated[float, Field(gt=0, le=3_600_000)]
    bad_ms: Annotated[float, Field(gt=0, le=60_000)]
    bad_loss: Annotated[float, Field(gt=0, le=1)] = 1.0


class Outage(Frozen):
    """The link stands still from ``start_s`` for ``duration_s``, once or every ``every_s``."""

    start_s: Annotated[float, Field(ge=0)]
    duration_s: Annotated[float, Field(gt=0, le=3_600)]
    every_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _leaves_time_between(self) -> Self:
        if self.every_s is not None and self.every_s <= self.duration_s:
            raise ValueError("an outage that comes again before it ends lets nothing through")
        return self


class DirectionSpec(Frozen):
    """One way of a link.

    Attributes:
        delay_ms: propagation, one way.
        rate_mbit: what the link carries; ``None`` is without limit (or as the trace says).
        trace: packet-delivery opportunities instead of a rate.
        queue_bytes: most that waits for the link; a packet that finds no room is dropped.
        jitter_ms: mean of the extra delay (exponential), 0 for none.
        jitter_memory_ms: how long the extra delay remembers itself (correlation time).
        loss: probability that a packet is lost, each on its own.
        burst_loss: losses that come together.
        outages: when the link stands still; what waits, waits on.
        mtu_bytes: size of a packet on the link, headers included.
        header_bytes: of these, bytes that are not payload (52 for TCP over IPv4 with timestamps);
            0 makes ``rate_mbit`` the rate of the payload.
        window_bytes: most that one connection has under way (TCP's receive window).
    """

    delay_ms: Milliseconds = 0.0
    rate_mbit: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    trace: Trace | None = None
    queue_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 256_000
    jitter_ms: Milliseconds = 0.0
    jitter_memory_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 100.0
    loss: Probability = 0.0
    burst_loss: BurstLoss | None = None
    outages: tuple[Outage, ...] = ()
    mtu_bytes: Annotated[int, Field(ge=64, le=65_536)] = 1_500
    header_bytes: Annotated[int, Field(ge=0)] = 0
    window_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 6 << 20

    @model_validator(mode="after")
    def _can_deliver(self) -> Self:
        if self.rate_mbit is not None and self.trace is not None:
            raise ValueError("rate_mbit and trace exclude each other")
        if self.header_bytes >= self.mtu_bytes:
            raise ValueError(f"header_bytes leave no payload in {self.mtu_bytes} bytes")
        if self.queue_bytes < self.mtu_bytes:
            raise ValueError(f"queue_bytes hold no packet of {self.mtu_bytes} bytes")
        if self.window_bytes < self.mtu_bytes:
            raise ValueError(f"window_bytes hold no packet of {self.mtu_bytes} bytes")
        return self


class LinkSpec(Frozen):
    """Both ways of a link: ``up`` from the edge to the cloud, ``down`` back."""

    up: DirectionSpec = DirectionSpec()
    down: DirectionSpec = DirectionSpec()

    @property
    def rtt_ms(self) -> float:
        """Round trip of an empty link without jitter."""
        return self.up.delay_ms + self.down.delay_ms


def parse_link(fields: Mapping[str, Any]) -> LinkSpec:
    """A link from plain data (JSON, a control request).

    Raises:
        LinkError: names the field and what is wrong with it.
    """
    try:
        return LinkSpec.model_validate(fields)
    except ValidationError as error:
        raise LinkError(_first(error)) from None


def change_link(
    spec: LinkSpec, *, up: Mapping[str, Any] | None = None, down: Mapping[str, Any] | None = None
) -> LinkSpec:
    """``spec`` with fields of either way replaced, validated anew.

    Raises:
        LinkError: names the field and what is wrong with it.
    """
    changed = {"up": dict(spec.up) | dict(up or {}), "down": dict(spec.down) | dict(down or {})}
    return parse_link(changed)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(["link", *(str(part) for part in first["loc"])])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
