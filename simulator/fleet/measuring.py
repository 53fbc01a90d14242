"""This machine as profiles of the fleet simulator: an edge's times and a cloud's, all measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloud.deep_model import DeepModel
from edge.engine import EdgeEngine
from shared.errors import ConfigurationError
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle, Precision
from simulator.bench.environment import Environment, look_around
from simulator.fleet.cores import ANY_CORES, Cores, on_cores
from simulator.fleet.measuring_cloud import (
    FULL_CLOUD,
    QUICK_CLOUD,
    CloudEffort,
    load_deep_model,
    measure_passes,
)
from simulator.fleet.measuring_edge import QUICK_EDGE, EdgeEffort, EdgeTimes, measure_edge
from simulator.fleet.measuring_fit import PassSample, fit_passes, worst_error
from simulator.fleet.measuring_messages import Overheads, measure_messages
from simulator.fleet.measuring_run import run_to_end
from simulator.fleet.profiles import CloudProfile, DeviceProfile, PassModel, Power

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
# two of 64 cores of a server processor of 280 W, as much again for memory, board and supply
_POWER = Power(
    idle_watts=7.0,
    active_watts=17.5,
    source="assumed, not measured: a core's share of a 64-core server processor of 280 W is 4.4 W; "
    "two cores, as much again for memory, board and supply, and 40% of it when idle",
)
_PRICE_PER_HOUR = 0.1101
_PRICE_SOURCE = (
    "a cloud machine with two cores: half of an Amazon EC2 c7a.xlarge, on demand, eu-west-1, July "
    "2024 (vantage-sh/ec2instances.info, issue 745); a machine of one's own costs what it costs"
)


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    edge: EdgeEffort
    cloud: CloudEffort

    @property
    def steps(self) -> int:
        """How often progress is told."""
        return self.edge.steps + cloud_steps(self.cloud)


FULL = Effort(EdgeEffort(), FULL_CLOUD)
QUICK = Effort(QUICK_EDGE, QUICK_CLOUD)


def cloud_steps(effort: CloudEffort) -> int:
    """How often :func:`measure_cloud` tells of progress."""
    return 2 * effort.steps + 1


@dataclass(frozen=True)
class CloudTimes:
    """A cloud's passes from token ids and from hidden states, with the samples behind each, and
    what a question takes besides."""

    whole: PassModel
    deep: PassModel
    samples: dict[str, list[PassSample]]
    overheads: Overheads
    threads: int | None


@dataclass(frozen=True)
class Measured:
    """Both profiles, and the measurements that they come from."""

    device: DeviceProfile
    cloud: CloudProfile
    details: dict[str, Any]


def check_name(name: str) -> None:
    """Raise :class:`ConfigurationError` for what is no profile's name."""
    if not _NAME.match(name):
        raise ConfigurationError(
            f"{name!r} is no name for a profile: small letters, digits, dots, dashes"
        )


def measure_machine(
    bundle: ModelBundle,
    precision: Precision,
    name: str,
    effort: Effort,
    advance: Callable[[str], None],
    *,
    threads: int | None = None,
    cloud_threads: int | None = None,
) -> Measured:
    """Measure edge and cloud one after the other; ``advance`` is told what was measured.

    Raises:
        BundleError, ConfigurationError: the bundle has no such precision, no exits, no cloud half.
    """
    check_name(name)
    environment = look_around(bundle)
    engine = EdgeEngine(bundle, precision, threads=threads)
    try:
        edge = measure_edge(engine, effort.edge, lambda: advance("edge"))
    finally:
        engine.close()
    model = load_deep_model(bundle)
    cloud = run_to_end(
        measure_cloud(bundle, model, effort.cloud, lambda: advance("cloud"), threads=cloud_threads)
    )
    return Measured(
        device_profile(name, edge, cloud.overheads, environment, precision, threads),
        cloud_profile(name, cloud, environment),
        {
            "environment": environment.as_record(),
            "precision": precision,
            "effort": asdict(effort.edge) | {"pass_rounds": effort.cloud.rounds},
            "edge_level_seconds_by_context": edge.by_context,
            "overheads": asdict(cloud.overheads),
            "passes": {
                kind: [asdict(sample) for sample in samples]
                for kind, samples in cloud.samples.items()
            },
            "worst_fit_error": {
                kind: worst_error(model, cloud.samples[kind])
                for kind, model in (("whole", cloud.whole), ("deep", cloud.deep))
            },
        },
    )


async def measure_cloud(
    bundle: ModelBundle,
    model: DeepModel,
    effort: CloudEffort,
    advance: Callable[[], None],
    *,
    threads: int | None = None,
    cores: Cores = ANY_CORES,
) -> CloudTimes:
    """Passes of ``model`` in this process, then messages to a cloud in a process of its own; both
    on the cloud's cores, and what asks it on the rest."""
    with on_cores(cores.cloud):
        samples = {
            name: await measure_passes(model, kind, effort, advance, threads=threads)
            for name, kind in (
                ("whole", ContextKind.TOKEN_IDS),
                ("deep", ContextKind.HIDDEN_STATES),
            )
        }
    with on_cores(cores.rest):
        overheads = await measure_messages(bundle, model, effort, cloud_cores=cores.cloud)
    advance()
    return CloudTimes(
        fit_passes(samples["whole"]), fit_passes(samples["deep"]), samples, overheads, threads
    )


def device_profile(
    name: str,
    edge: EdgeTimes,
    overheads: Overheads,
    environment: Environment,
    precision: Precision,
    threads: int | None,
) -> DeviceProfile:
    """The edge's half."""
    contexts = ", ".join(map(str, edge.by_context))
    return DeviceProfile(
        name=name,
        source=f"measured by `tandem simulate fleet-profile` {_where(environment)}: "
        f"{environment.bundle['name']}, {precision}, {_threads(threads)}; medians behind "
        f"{contexts} positions",
        measured=True,
        segment_seconds=_rounded(edge.segments),
        exit_seconds=_rounded(edge.exits),
        pending_seconds=_rounded(edge.pending),
        prefill_seconds=round(edge.prefill, 7),
        step_seconds=round(edge.step, 7),
        message_seconds=round(overheads.edge_message, 7),
        power=_POWER,
    )


def cloud_profile(name: str, cloud: CloudTimes, environment: Environment) -> CloudProfile:
    """The cloud's half."""
    return CloudProfile(
        name=name,
        source=f"measured by `tandem simulate fleet-profile` {_where(environment)}: "
        f"{environment.bundle['name']}, float32, {_threads(cloud.threads)}",
        measured=True,
        whole=_shortened(cloud.whole),
        deep=_shortened(cloud.deep),
        message_seconds=round(cloud.overheads.message, 7),
        turnaround_seconds=round(cloud.overheads.turnaround, 7),
        power=_POWER,
        price_per_hour=_PRICE_PER_HOUR,
        price_source=_PRICE_SOURCE,
    )


def write_measured(measured: Measured, folder: Path) -> list[Path]:
    """Write ``devices/NAME.json``, ``clouds/NAME.json`` and ``measurements/NAME.json``."""
    name = measured.device.name
    contents = {
        "devices": measured.device.model_dump(mode="json"),
        "clouds": measured.cloud.model_dump(mode="json"),
        "measurements": measured.details,
    }
    paths = []
    for kind, content in contents.items():
        path = folder / kind / f"{name}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
        paths.append(path)
    return paths


def _where(environment: Environment) -> str:
    busy = f" at load {environment.load}" if environment.busy else ""
    return f"on {environment.machine}, {environment.date}{busy}"


def _threads(threads: int | None) -> str:
    if threads is None:
        return "all cores"
    return f"{threads} thread{'' if threads == 1 else 's'}"


def _rounded(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 7) for value in seconds)


def _shortened(model: PassModel) -> PassModel:
    fields = model.model_dump()
    fields["beyond_seconds"] = tuple(round(value, 9) for value in model.beyond_seconds)
    return PassModel(
        **{name: round(v, 9) if isinstance(v, float) else v for name, v in fields.items()}
    )
