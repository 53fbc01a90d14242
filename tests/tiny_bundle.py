"""A complete bundle of the seeded tiny model, for tests of any part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prepare.bundle_writer import write_bundle
from prepare.exit_weights import ExitSet, untrained_exits
from prepare.tiny_model import tiny_model
from shared.model_bundle import ModelBundle, OperatingPoint, Precision

TINY_EXIT_LAYERS = (2, 4)


def tiny_exits(seed: int = 0) -> ExitSet:
    """Exits after layers 2 and 4 whose heads cover the tokens below 260; their table of operating
    points is made up."""
    ids = np.arange(260, dtype=np.int32)
    exits = untrained_exits(tiny_model(seed), TINY_EXIT_LAYERS, vocabulary_ids=ids)
    points = tuple(
        OperatingPoint(threshold=x, agreement=0.9 + x / 15, escalation_rate=x)
        for x in (0.3, 0.6, 0.9)
    )
    return replace(exits, operating_points=points)


def write_tiny_bundle(
    folder: Path,
    seed: int = 0,
    precisions: Sequence[Precision] = ("float32", "int8", "int4"),
    full_depth: bool = True,
    *,
    measured: bool = True,
) -> ModelBundle:
    """Write the bundle into ``folder``; the same seed gives the same files.  One that was not
    ``measured`` has no table of operating points."""
    exits = tiny_exits(seed)
    if not measured:
        exits = replace(exits, operating_points=())
    return write_bundle(
        tiny_model(seed), exits, folder, precisions=precisions, full_depth=full_depth
    )
