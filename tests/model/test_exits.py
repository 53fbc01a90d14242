"""The built-in exits on the real model: a few answers, enough to see that something broke."""

from __future__ import annotations

import pytest
from rich.console import Console

from prepare.cli import load_base_model
from prepare.exit_training.check import PrecisionCheck, check_exits
from shared.model_bundle import ModelBundle
from tests.model.test_real_model import BUNDLE, PROMPTS

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not BUNDLE.exists(), reason="no test bundle: run `make test-bundle`"),
]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def checks() -> dict[str, PrecisionCheck]:
    bundle, model = ModelBundle.load(BUNDLE), load_base_model(None, QUIET)
    found = check_exits(model, bundle, ["float32", "int8", "int4"], PROMPTS[:8], 32, QUIET)
    return {check.precision: check for check in found}


def test_exits_are_often_right_and_deeper_ones_more_often(
    checks: dict[str, PrecisionCheck],
) -> None:
    first, last = checks["int8"].exits
    assert first.agreement > 0.35
    assert last.agreement > max(0.5, first.agreement)


def test_rounding_the_edge_costs_little_agreement(checks: dict[str, PrecisionCheck]) -> None:
    exact = checks["float32"].exits[-1].agreement
    for precision in ("int8", "int4"):
        assert checks[precision].exits[-1].agreement > exact - 0.04


def test_a_target_agreement_is_about_kept_and_saves_requests(
    checks: dict[str, PrecisionCheck],
) -> None:
    target = next(target for target in checks["int8"].targets if target.target == 0.95)
    assert target.by_table is not None
    assert target.by_table.agreement > 0.87
    assert target.by_table.escalation_rate < 0.8
