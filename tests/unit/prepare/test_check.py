"""Checking a bundle's exits: real answers of the tiny model, the edge's real graphs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prepare.bundle_writer import write_bundle
from prepare.exit_training.check import check_exits, check_table
from prepare.exit_weights import untrained_exits
from prepare.tiny_model import tiny_model
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle, OperatingPoint
from tests.tiny_bundle import write_tiny_bundle

MODEL = tiny_model(1)
PROMPTS = ["one", "two words", "three words here"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Its second exit is the rest of the model, so it is always right."""
    layers = MODEL.architecture.layers
    first = untrained_exits(MODEL, [1]).exits[0]
    rest = untrained_exits(MODEL, [2], blocks=layers - 2).exits[0]
    rest = replace(rest, info=rest.info.model_copy(update={"name": "exit2"}))
    exits = replace(
        untrained_exits(MODEL, [1]),
        exits=(first, rest),
        operating_points=(OperatingPoint(threshold=0.999, agreement=0.96, escalation_rate=0.9),),
    )
    folder = tmp_path_factory.mktemp("check") / "bundle"
    return write_bundle(
        MODEL, exits, folder, precisions=["float32", "int8"], full_depth=False, cloud=False
    )


def test_an_exit_that_is_the_full_model_is_always_right(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    plot = tmp_path / "plots" / "reliability.png"
    exact, rounded = check_exits(MODEL, bundle, ["float32", "int8"], PROMPTS, 12, QUIET, plot)
    assert [one.name for one in exact.exits] == ["exit1", "exit2"]
    assert exact.exits[1].agreement == 1.0
    assert exact.exits[0].agreement < 1.0
    assert 0 < exact.tokens == rounded.tokens <= 12 * len(PROMPTS)
    by_target = {target.target: target for target in exact.targets}
    assert by_target[0.95].by_table is not None
    assert by_target[0.99].by_table is None, "the bundle's table ends at 0.96"
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = io.StringIO()
    Console(file=printed, width=100).print(check_table([exact, rounded]))
    shown = printed.getvalue()
    assert "exit2: agreement" in shown
    assert "1.0000" in shown


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "b", 3, ("float32",), full_depth=False)
    with pytest.raises(ConfigurationError, match="other weights"):
        check_exits(MODEL, other, ["float32"], PROMPTS, 8, QUIET)
