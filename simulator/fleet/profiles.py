"""How long devices and clouds take, in seconds, and what they draw, in watts.

Shipped profiles lie in ``simulator/fleet/data/devices`` and ``.../clouds``, one JSON object a file,
named after the file.  A profile is *measured* (``tandem simulate fleet-profile`` wrote it) or
*derived*: a measured one times stated factors, with the source of the factors.  The shipped
measured ones are ``xeon-2core`` and ``epyc-2core``, in both folders; the others are derived from
the latter.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ConfigurationError

Seconds = Annotated[float, Field(ge=0.0, le=3600.0)]
Watts = Annotated[float, Field(ge=0.0, le=1e6)]
Factor = Annotated[float, Field(gt=0.0, le=1e4)]
T = TypeVar("T", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Power(_Frozen):
    """What a machine draws, wall to wall; ``source`` says where the figures are from."""

    idle_watts: Watts
    active_watts: Watts
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.active_watts < self.idle_watts:
            raise ValueError("active_watts are less than idle_watts")
        return self


class DeviceProfile(_Frozen):
    """An edge's own times.

    Level *i* is segment *i* and then exit *i* (blocks and head).  A token's time is that of the
    levels that it is read at, shallow to deep, plus ``step_seconds``.  Level *i* over *n* positions
    that it has not seen takes ``segment_seconds[i] + exit_seconds[i] + (n - 1) pending_seconds[i]``
    (level 0: its segment's share of a prompt is ``prefill_seconds`` a token, on top).

    Attributes:
        source: how the figures came about, in a sentence.
        measured: or derived.
        segment_seconds: one token through the segment before each exit; one entry an exit.
        exit_seconds: one reading of each exit at one position.
        pending_seconds: each further position that a level takes in, in the same batch: level 0 is
            the blocks of exit 1 alone, deeper ones segment and blocks of exit.
        prefill_seconds: a token of a prompt through segment 0, in chunks of 128.
        step_seconds: what a token takes besides (sampling, the token loop).
        message_seconds: to make and hand over a message to the cloud, or to take one in.
    """

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    measured: bool
    segment_seconds: tuple[Seconds, ...] = Field(min_length=1)
    exit_seconds: tuple[Seconds, ...] = Field(min_length=1)
    pending_seconds: tuple[Seconds, ...] = Field(min_length=1)
    prefill_seconds: Seconds
    step_seconds: Seconds = 0.0
    message_seconds: Seconds = 0.0
    power: Power

    @model_validator(mode="after")
    def _same_exits(self) -> Self:
        if not len(self.segment_seconds) == len(self.exit_seconds) == len(self.pending_seconds):
            raise ValueError("segment_seconds, exit_seconds and pending_seconds differ in length")
        return self

    @property
    def level_seconds(self) -> tuple[float, ...]:
        """A level over one position."""
        return tuple(s + e for s, e in zip(self.segment_seconds, self.exit_seconds, strict=True))


class DerivedDevice(_Frozen):
    """A device that nobody measured: the one called ``base``, times factors.

    Attributes:
        decode_factor: how many times as long a token takes, one at a time (memory bandwidth).
        prefill_factor: the same for many at a time (arithmetic).
        source: where the factors are from.
    """

    name: str = Field(min_length=1)
    base: str
    decode_factor: Factor
    prefill_factor: Factor
    source: str = Field(min_length=1)
    power: Power

    def of(self, base: DeviceProfile) -> DeviceProfile:
        """The profile that results."""
        slow, many = self.decode_factor, self.prefill_factor
        return DeviceProfile(
            name=self.name,
            source=f"derived, not measured: {base.name} × {slow:g} for single tokens, × {many:g} "
            f"for many at once. {self.source}",
            measured=False,
            segment_seconds=tuple(slow * s for s in base.segment_seconds),
            exit_seconds=tuple(slow * s for s in base.exit_seconds),
            pending_seconds=tuple(many * s for s in base.pending_seconds),
            prefill_seconds=many * base.prefill_seconds,
            step_seconds=slow * base.step_seconds,
            message_seconds=slow * base.message_seconds,
            power=self.power,
        )


class PassModel(_Frozen):
    """A pass's time, fitted to measured ones::

        base + beyond(rows) + session · sessions + decision · decisions + past · past

    with ``rows`` of context in the pass, ``sessions`` that they belong to, ``decisions`` that the
    vocabulary head makes, and ``past`` the positions behind the rows, summed over the sessions.
    ``beyond`` is a line from knot to knot, and goes on behind the last as it came: the weights are
    read for a few rows as for one, and many rows are arithmetic.

    Attributes:
        base_seconds: a pass over one row, but for the terms of session, decision and past.
        knots: numbers of rows, rising, the first 1.
        beyond_seconds: what a pass over so many rows takes beyond the base, for each knot: rising,
            the first 0.
        r_squared: share of the measured variance that the fit explains.
        samples: measured passes behind it.
    """

    base_seconds: Seconds
    knots: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(min_length=1, max_length=64)
    beyond_seconds: tuple[Seconds, ...]
    session_seconds: Seconds
    decision_seconds: Seconds = 0.0
    past_seconds: Seconds = 0.0
    r_squared: float = Field(ge=0.0, le=1.0)
    samples: int = Field(ge=0)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.knots) != len(self.beyond_seconds):
            raise ValueError("knots and beyond_seconds differ in length")
        if self.knots[0] != 1 or self.beyond_seconds[0]:
            raise ValueError("the first of the knots is 1, the first of beyond_seconds 0")
        if any(a >= b for a, b in pairwise(self.knots)):
            raise ValueError("knots do not rise")
        if any(a > b for a, b in pairwise(self.beyond_seconds)):
            raise ValueError("beyond_seconds fall")
        return self

    def scaled(self, base: float, rest: float) -> PassModel:
        """The same with the base and the rest of the coefficients times factors."""
        return self.model_copy(
            update={
                "base_seconds": base * self.base_seconds,
                "beyond_seconds": tuple(rest * seconds for seconds in self.beyond_seconds),
                "session_seconds": base * self.session_seconds,
                "decision_seconds": rest * self.decision_seconds,
                "past_seconds": rest * self.past_seconds,
            }
        )

    def rows_seconds(self, most: int) -> list[float]:
        """Base and rows of passes over 0 to ``most`` rows; nothing for none."""
        return [self.of_rows(rows) for rows in range(most + 1)]

    def of_rows(self, rows: int) -> float:
        """Base and rows of a pass over so many; nothing for none."""
        return self.base_seconds + self._beyond(rows) if rows else 0.0

    def _beyond(self, rows: int) -> float:
        knots, seconds = self.knots, self.beyond_seconds
        if len(knots) == 1:
            return 0.0
        at = min(bisect_right(knots, rows), len(knots) - 1)
        share = (rows - knots[at - 1]) / (knots[at] - knots[at - 1])
        return seconds[at - 1] + share * (seconds[at] - seconds[at - 1])


class CloudProfile(_Frozen):
    """One replica's times: a batcher (:mod:`cloud.batcher`) and what is around it.

    Attributes:
        source: how the figures came about, in a sentence.
        measured: or derived.
        whole: passes over token ids, through all layers.
        deep: passes over hidden states, from the cut on.
        max_rows: most rows in a pass, as ``tandem cloud serve`` has it.
        message_seconds: of the service's processor for a message in or out, beside the model, which
            waits meanwhile.
        turnaround_seconds: from a question's arrival to the pass and from the pass to the reply on
            the wire, together, beyond the messages' seconds: waking up, and the system's share.
        price_per_hour: of a replica, in US dollars.
        price_source: where the price is from.
    """

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    measured: bool
    whole: PassModel
    deep: PassModel
    max_rows: int = Field(default=128, ge=1, le=65_536)
    message_seconds: Seconds = 0.0
    turnaround_seconds: Seconds = 0.0
    power: Power
    price_per_hour: float = Field(ge=0.0, le=1e5)
    price_source: str = Field(min_length=1)

    def pass_seconds(
        self,
        whole: tuple[int, int, int, int] = (0, 0, 0, 0),
        deep: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> float:
        """A pass over ``(rows, sessions, decisions, past)`` from token ids and from hidden states.

        A mixed pass reads all weights once: all rows go through the deep layers together, and
        those from token ids before through the others.
        """
        a, b = self.whole, self.deep
        rows = whole[0] + deep[0]
        return (
            a.of_rows(whole[0])
            + b.of_rows(rows)
            - b.of_rows(whole[0])
            + a.session_seconds * whole[1]
            + a.decision_seconds * whole[2]
            + a.past_seconds * whole[3]
            + b.session_seconds * deep[1]
            + b.decision_seconds * deep[2]
            + b.past_seconds * deep[3]
        )

    @property
    def token_seconds(self) -> float:
        """A token decoded alone, through all layers (burst, lookahead and plain serving)."""
        return self.pass_seconds(whole=(1, 1, 1, 0))


class DerivedCloud(_Frozen):
    """A replica that nobody measured: the one called ``base``, times factors.

    Attributes:
        base_factor: for what a pass costs whatever is in it (reading the weights, launching).
        row_factor: for what grows with the rows (arithmetic).
        host_factor: for what is around a pass (messages, turnaround).
    """

    name: str = Field(min_length=1)
    base: str
    base_factor: Factor
    row_factor: Factor
    host_factor: Factor = 1.0
    max_rows: int | None = Field(default=None, ge=1, le=65_536)
    source: str = Field(min_length=1)
    power: Power
    price_per_hour: float = Field(ge=0.0, le=1e5)
    price_source: str = Field(min_length=1)

    def of(self, base: CloudProfile) -> CloudProfile:
        """The profile that results."""
        return CloudProfile(
            name=self.name,
            source=f"derived, not measured: {base.name}, a pass × {self.base_factor:g}, its rows × "
            f"{self.row_factor:g}. {self.source}",
            measured=False,
            whole=base.whole.scaled(self.base_factor, self.row_factor),
            deep=base.deep.scaled(self.base_factor, self.row_factor),
            max_rows=self.max_rows or base.max_rows,
            message_seconds=self.host_factor * base.message_seconds,
            turnaround_seconds=self.host_factor * base.turnaround_seconds,
            power=self.power,
            price_per_hour=self.price_per_hour,
            price_source=self.price_source,
        )


def load_device(name: str) -> DeviceProfile:
    """A shipped profile by name, or one by the path of its file (``.json``).

    Raises:
        ConfigurationError: there is none, or it is none; says what is wrong.
    """
    fields = _read("devices", name)
    if "base" not in fields:
        return _parse(DeviceProfile, fields, name)
    derived = _parse(DerivedDevice, fields, name)
    return derived.of(_parse(DeviceProfile, _read("devices", derived.base), derived.base))


def load_cloud(name: str) -> CloudProfile:
    """As :func:`load_device`, for clouds."""
    fields = _read("clouds", name)
    if "base" not in fields:
        return _parse(CloudProfile, fields, name)
    derived = _parse(DerivedCloud, fields, name)
    return derived.of(_parse(CloudProfile, _read("clouds", derived.base), derived.base))


def shipped(kind: str) -> list[str]:
    """Names of the shipped profiles; ``kind`` is ``devices`` or ``clouds``."""
    return sorted(
        entry.name.removesuffix(".json")
        for entry in _folder(kind).iterdir()
        if entry.name.endswith(".json")
    )


def _folder(kind: str) -> Traversable:
    return files("simulator.fleet") / "data" / kind


@cache
def _read(kind: str, name: str) -> dict[str, Any]:
    if name.endswith(".json"):
        entry: Traversable = Path(name)
    elif name in (names := shipped(kind)):
        entry = _folder(kind) / f"{name}.json"
    else:
        raise ConfigurationError(
            f"no {kind.removesuffix('s')} {name!r}: there are {', '.join(names)}, or a path that "
            "ends with .json"
        )
    try:
        fields = json.loads(entry.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{name} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigurationError(f"{name} is not a profile: an object is needed")
    return fields


def _parse(model: type[T], fields: dict[str, Any], name: str) -> T:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"profile {name}: {where + ': ' if where else ''}{what}") from None
