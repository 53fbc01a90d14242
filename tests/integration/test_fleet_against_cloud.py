"""The pieces in which the cloud really runs a prompt, which the fleet simulator counts with."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloud.batcher import Batcher, Outcome, Work
from edge.generation import Mode
from tests.edge_harness import edge_and_cloud, full_answer, ids_of, options_for


@pytest.mark.parametrize(
    ("prompt", "pieces"), [(15, [15]), (16, [16, 0]), (64, [64, 0]), (100, [64, 36])]
)
async def test_a_prompt_is_run_in_pieces_as_the_simulator_has_it(
    monkeypatch: pytest.MonkeyPatch, prompt: int, pieces: list[int]
) -> None:
    """The same pieces as in tests/unit/simulator/fleet/test_closed_form.py."""
    passes: list[int] = []
    compute = Batcher._compute

    def watched(batcher: Batcher, works: Sequence[Work]) -> list[Outcome]:
        passes.append(sum(len(work.rows) for work in works))
        return compute(batcher, works)

    monkeypatch.setattr(Batcher, "_compute", watched)
    ids = tuple(3 + 7 * position % 200 for position in range(prompt))
    async with edge_and_cloud() as engine:
        result = await engine.generate(ids, options_for(Mode.CLOUD_ONLY, max_tokens=4))
    wanted = full_answer(ids, 4)
    assert ids_of(result) == wanted
    assert passes == [*pieces, *[1] * (len(wanted) - 1)]
