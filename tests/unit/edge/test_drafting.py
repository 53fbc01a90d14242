"""When a further draft pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.drafting import DraftWorth

STEP, CLOUD = 0.01, 0.03


def weighed(wait: float, *, shared_cores: bool = False, cloud: float = CLOUD) -> float:
    worth = DraftWorth(None, shared_cores=shared_cores)
    worth.drafted(STEP)
    worth.answered(wait, cloud)
    return worth.least_chance


def test_a_fixed_chance_is_not_weighed() -> None:
    worth = DraftWorth(0.4, shared_cores=True)
    worth.drafted(1.0)
    worth.answered(0.001, 0.0)
    assert worth.least_chance == 0.4


def test_what_may_be_won_is_held_against_the_work() -> None:
    assert weighed(0.09) == pytest.approx(0.1)  # one in ten, where ten times the work may be won
    assert weighed(0.03) == pytest.approx(0.25)


def test_a_cloud_on_the_same_cores_counts_as_no_wait() -> None:
    assert weighed(0.12, shared_cores=True) == pytest.approx(0.1)
    assert weighed(0.035, shared_cores=True) == 1.0


def test_nothing_pays_within_a_token_of_the_edges() -> None:
    assert weighed(STEP / 2, cloud=0.0) == 1.0


def test_before_the_first_answer_an_earlier_round_trip_counts() -> None:
    worth = DraftWorth(None, shared_cores=True, earlier_round_trip=0.09)
    worth.drafted(STEP)
    assert worth.least_chance == pytest.approx(0.1)
    assert DraftWorth(None, shared_cores=True).least_chance == 1.0
    assert DraftWorth(None, shared_cores=False).least_chance < 0.5


@given(st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_a_longer_wait_never_makes_drafting_less_worth(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert weighed(longer) <= weighed(shorter)


def test_the_cloud_looks_ahead_where_the_way_is_longer_than_a_pass() -> None:
    def lookahead(wait: float, *, every_token: bool = False) -> int:
        worth = DraftWorth(None, shared_cores=True)
        worth.drafted(STEP)
        worth.answered(wait, CLOUD)
        return worth.lookahead(every_token=every_token)

    assert lookahead(CLOUD + 0.015) == 0
    assert lookahead(CLOUD + 0.021) == 3
    assert lookahead(CLOUD + 0.049) == 4
    assert lookahead(CLOUD + 5.0) == 16
    assert lookahead(CLOUD, every_token=True) == 16
    assert DraftWorth(None, shared_cores=True).lookahead(every_token=False) == 0


def test_a_cloud_that_says_it_took_no_time_is_asked_for_the_most() -> None:
    worth = DraftWorth(None, shared_cores=False)
    worth.drafted(STEP)
    worth.answered(0.05, 0.0)
    assert worth.lookahead(every_token=False) == 16
