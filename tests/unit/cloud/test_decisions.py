"""Decisions by position: what a mapping does, and memory that grows, stays and goes as counted."""

from __future__ import annotations

import pytest

from cloud.decisions import ENTRY_BYTES, Decisions
from shared.sampling import Choice

CHOICES = {1: Choice(0, -0.1), 3: Choice(49_151, -1e-300), 8: Choice(7, -12.345678901234567)}


def test_choices_come_back_to_the_bit_in_the_order_of_their_positions() -> None:
    decisions = Decisions()
    decisions.grow(8)
    decisions.update(reversed(CHOICES.items()))
    assert list(decisions.items()) == list(CHOICES.items())
    assert len(decisions) == 3
    assert decisions.get(2) is None
    decisions[3] = Choice(5, 0.0)
    assert decisions[3] == Choice(5, 0.0)
    del decisions[3]
    assert 3 not in decisions
    with pytest.raises(KeyError):
        del decisions[3]


@pytest.mark.parametrize("position", [-1, 0, 9])
def test_there_is_no_decision_where_there_is_no_context(position: int) -> None:
    decisions = Decisions()
    decisions.grow(8)
    decisions.update(CHOICES)
    assert position not in decisions
    with pytest.raises(AssertionError, match="without its context"):
        decisions[position] = Choice(1, 0.0)


def test_memory_grows_and_what_was_decided_stays() -> None:
    decisions = Decisions()
    assert (decisions.capacity, decisions.nbytes) == (0, 0)
    decisions.grow(8)
    decisions.update(CHOICES)
    decisions.grow(64)
    assert (decisions.capacity, decisions.nbytes) == (64, 64 * ENTRY_BYTES)
    assert decisions == CHOICES
    decisions.grow(8)
    assert decisions.capacity == 64


def test_a_cut_forgets_what_follows_and_keeps_its_memory_and_clear_gives_it_back() -> None:
    decisions = Decisions()
    decisions.grow(8)
    decisions.update(CHOICES)
    decisions.cut(3)
    assert list(decisions) == [1, 3]
    decisions.cut(0)
    assert (list(decisions), decisions.capacity) == ([], 8)
    decisions.clear()
    assert (list(decisions), decisions.nbytes) == ([], 0)
