"""What is simulated: a TOML or JSON file, frozen and validated; an unknown key fails by its name.

``docs/fleet.md`` explains the keys, ``simulator/fleet/examples`` holds files to begin with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.context_source import ContextCodec
from edge.controller import Aim
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.plan import DEFAULT_WINDOW
from shared.config_file import first_problem, read_table
from shared.errors import ConfigurationError
from simulator.fleet.policies import Policy, PolicyName, make_policy
from simulator.fleet.profiles import load_cloud, load_device
from simulator.link_presets import preset
from simulator.link_spec import LinkSpec, change_link
from simulator.packet_trace import load_trace

MOST_EDGES = 1_000_000
DAY_SECONDS = 86_400.0


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Workload(_Table):
    """What users do: they think, ask, read the answer, and think again.

    Attributes:
        think_s: mean of the (exponential) time from the end of an answer to the next question.
        diurnal: how far the rate of questions swings around its mean over a day: 0 not at all,
            1 down to nothing.
        peak_h: hour of the most questions; the simulation begins at hour ``begin_h``.
        recording: ``.npz`` of ``tandem simulate fleet-record``; the shipped one by default.
        max_tokens: what the controller takes for the longest answer.
    """

    think_s: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    diurnal: Annotated[float, Field(ge=0, le=1)] = 0.0
    peak_h: Annotated[float, Field(ge=0, lt=24)] = 20.0
    begin_h: Annotated[float, Field(ge=0, lt=24)] = 0.0
    recording: Path | None = None
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 256


class CloudTable(_Table):
    """The replicas, all alike; an edge keeps to one.

    Attributes:
        profile: a shipped cloud's name, or the path of a file.
        price_per_hour: of a replica, in US dollars, in place of the profile's.
        max_rows: of a pass, in place of the profile's.
    """

    profile: str
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    price_per_hour: Annotated[float, Field(ge=0, le=1e5)] | None = None
    max_rows: Annotated[int, Field(ge=1, le=65_536)] | None = None


class EdgesTable(_Table):
    """A group of edges that are alike.

    Attributes:
        device: a shipped device's name, or the path of a file.
        link: a preset's name (``tandem simulate link --list``); the other link keys change it.
        rtt_ms: half of it each way.
        trace_up: Mahimahi trace in place of a rate; ``trace_down`` too.
        policy: who decides; ``aim``, ``target_agreement``, ``private`` and ``cloud_token_price``
            are for ``auto``, ``threshold``, ``window``, ``burst`` and ``lookahead`` for the others.
    """

    name: str | None = None
    count: Annotated[int, Field(ge=1, le=MOST_EDGES)] = 1
    device: str
    link: str = "loopback"
    rtt_ms: Annotated[float, Field(ge=0, le=120_000)] | None = None
    up_mbit: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    down_mbit: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    jitter_ms: Annotated[float, Field(ge=0, le=60_000)] | None = None
    loss: Annotated[float, Field(ge=0, lt=1)] | None = None
    trace_up: Path | None = None
    trace_down: Path | None = None
    policy: PolicyName = PolicyName.AUTO
    aim: Aim = Aim.LATENCY
    target_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    private: bool = False
    cloud_token_price: Annotated[float, Field(ge=0)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] = DEFAULT_THRESHOLD
    window: Annotated[int, Field(ge=0)] = DEFAULT_WINDOW
    burst: Annotated[int, Field(ge=0)] = 0
    lookahead: Annotated[int, Field(ge=0)] | None = None
    codec: ContextCodec | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        own = self.model_fields_set
        idle = sorted((_OF_POLICIES - _READ_BY[self.policy]) & own)
        if idle:
            raise ValueError(f"the policy {self.policy.value} does not read {idle[0]}: drop it")
        for way in ("up", "down"):
            if {f"trace_{way}", f"{way}_mbit"} <= own:
                raise ValueError(f"trace_{way} is a rate, and so is {way}_mbit: drop one")
        self.make_policy()
        return self

    def make_policy(self) -> Policy:
        """How these edges decide."""
        return make_policy(
            self.policy,
            aim=self.aim,
            threshold=self.threshold,
            window=self.window,
            burst=self.burst,
            lookahead=self.lookahead,
            codec=self.codec,
            target_agreement=self.target_agreement,
            private=self.private,
            cloud_token_price=self.cloud_token_price,
        )

    def make_link(self) -> LinkSpec:
        """What lies between these edges and the cloud.

        Raises:
            LinkError: an unknown preset, a trace that cannot be read.
        """
        ways = []
        for rate, trace in ((self.up_mbit, self.trace_up), (self.down_mbit, self.trace_down)):
            changes: dict[str, object] = {}
            if self.rtt_ms is not None:
                changes["delay_ms"] = self.rtt_ms / 2
            if rate is not None:
                changes |= {"rate_mbit": rate, "trace": None}
            if trace is not None:
                changes |= {"trace": load_trace(trace), "rate_mbit": None}
            if self.jitter_ms is not None:
                changes["jitter_ms"] = self.jitter_ms
            if self.loss is not None:
                changes["loss"] = self.loss
            ways.append(changes)
        return change_link(preset(self.link), up=ways[0], down=ways[1])

    @property
    def label(self) -> str:
        """The group's name in reports."""
        device = Path(self.device).stem
        return self.name or f"{device}, {self.link}, {self.make_policy().label}"


_DRAFTING = frozenset({"threshold", "window", "burst", "lookahead", "codec"})
_READ_BY = {
    PolicyName.AUTO: frozenset(
        {"aim", "target_agreement", "private", "cloud_token_price", "codec"}
    ),
    PolicyName.CLOUD_ONLY: frozenset[str](),
    PolicyName.STANDALONE: frozenset({"threshold"}),
    PolicyName.BLOCKING: _DRAFTING - {"window"},
    PolicyName.OPTIMISTIC: _DRAFTING,
    PolicyName.VERIFIED: _DRAFTING,
}
_OF_POLICIES = frozenset[str]().union(*_READ_BY.values())


class FleetConfig(_Table):
    """A fleet and its cloud.

    Attributes:
        duration_s: simulated seconds.
        warmup_s: what ends earlier does not count.
        seed: of all chance; the command line may name another.
    """

    name: str = "fleet"
    duration_s: Annotated[float, Field(gt=0, le=30 * DAY_SECONDS)] = 3600.0
    warmup_s: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] = 0
    workload: Workload = Workload()
    cloud: CloudTable
    edges: Annotated[tuple[EdgesTable, ...], Field(min_length=1, max_length=1000)]

    @property
    def counted_seconds(self) -> float:
        """What is behind the warm-up."""
        return self.duration_s - self.warmup_s

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.warmup_s >= self.duration_s:
            raise ValueError("warmup_s leaves nothing of duration_s")
        if sum(group.count for group in self.edges) > MOST_EDGES:
            raise ValueError(f"a fleet has at most {MOST_EDGES:,} edges")
        labels = [group.label for group in self.edges]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two groups of edges are called {twice!r}: name them")
        return self


def load_config(path: Path) -> FleetConfig:
    """Read and check a configuration, with everything that it names.

    Raises:
        ConfigurationError: says the key and what is wrong with it.
    """
    return parse_config(read_table(path), str(path))


def parse_config(fields: dict[str, object], name: str) -> FleetConfig:
    """As :func:`load_config`, for a table that was read; ``name`` is for the errors."""
    try:
        config = FleetConfig.model_validate(fields)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise ConfigurationError(f"{name}: {key + ': ' if key else ''}{problem}") from None
    load_cloud(config.cloud.profile)
    for group in config.edges:
        load_device(group.device)
        group.make_link()
    return config
