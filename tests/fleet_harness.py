"""Fleets for tests: an invented recording, and machines with round figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.model_bundle import OperatingPoint
from simulator.fleet.config import FleetConfig, parse_config
from simulator.fleet.profiles import CloudProfile, DeviceProfile, PassModel, Power
from simulator.fleet.recordings import ModelFacts, RecordedAnswer, Recording

POWER = Power(idle_watts=2.0, active_watts=10.0, source="invented for a test")
DEVICE = DeviceProfile(
    name="test-device",
    source="invented for a test",
    measured=False,
    segment_seconds=(0.004, 0.002),
    exit_seconds=(0.001, 0.002),
    pending_seconds=(0.0002, 0.0005),
    prefill_seconds=0.001,
    step_seconds=0.0005,
    message_seconds=0.0,
    power=POWER,
)
PASSES = PassModel(
    base_seconds=0.021,
    knots=(1, 1001),
    beyond_seconds=(0.0, 1.0),
    session_seconds=0.0005,
    decision_seconds=0.0002,
    r_squared=1.0,
    samples=0,
)
CLOUD = CloudProfile(
    name="test-cloud",
    source="invented for a test",
    measured=False,
    whole=PASSES,
    deep=PASSES.scaled(0.5, 0.5),
    message_seconds=0.0004,
    turnaround_seconds=0.001,
    power=POWER,
    price_per_hour=0.1,
    price_source="invented for a test",
)
_POINTS = ((0.5, 0.8, 0.3), (0.8, 0.95, 0.55), (0.9, 0.98, 0.65))


def invented_recording(
    answers: int = 8, length: int = 40, prompt: int = 30, seed: int = 0
) -> Recording:
    """Confidences that mean what they say."""
    noise = np.random.default_rng(seed)
    made = []
    for _ in range(answers):
        tokens = int(noise.integers(max(1, length // 2), length + 1))
        first = noise.random(tokens)
        second = np.minimum(1.0, first + 0.2 * noise.random(tokens))
        confidences = np.stack([first, second], axis=1).astype(np.float32)
        agrees = noise.random(confidences.shape) < confidences
        made.append(RecordedAnswer(int(noise.integers(1, prompt + 1)), confidences, agrees))
    points = tuple(
        OperatingPoint(threshold=t, agreement=a, escalation_rate=e) for t, a, e in _POINTS
    )
    model = ModelFacts(
        bundle="test",
        fingerprint="0" * 64,
        prompts="invented for a test",
        layers=30,
        cut=16,
        hidden_size=576,
        operating_points=points,
    )
    return Recording(model, tuple(made))


def write_machines(folder: Path) -> tuple[str, str]:
    """The device's file and the cloud's, as configurations name them."""
    device, cloud = folder / "device.json", folder / "cloud.json"
    device.write_text(DEVICE.model_dump_json())
    cloud.write_text(CLOUD.model_dump_json())
    return str(device), str(cloud)


def make_config(folder: Path, edges: list[dict[str, Any]], **others: Any) -> FleetConfig:
    """A configuration with the test's machines; each of ``edges`` is a group."""
    device, cloud = write_machines(folder)
    workload = others.pop("workload", {"think_s": 20.0})
    replicas = others.pop("replicas", 1)
    groups = [
        {"device": device, "name": f"group {index}"} | group for index, group in enumerate(edges)
    ]
    fields = {
        "duration_s": 300.0,
        "workload": workload,
        "cloud": {"profile": cloud, "replicas": replicas},
        "edges": groups,
    }
    return parse_config(json.loads(json.dumps(fields | others)), "test")
