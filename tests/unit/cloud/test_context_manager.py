"""The context store: joins, cuts, one byte budget, two steps of eviction, expiry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cloud.context_manager import ContextStore, HeldSession, SessionKey, StoreLimits
from cloud.kv_cache import KvCache
from prepare.tiny_model import TINY_ARCHITECTURE as ARCH
from shared.clock import ManualClock
from shared.errors import BudgetExceededError, ContextGapError, InvalidMessageError
from shared.messages import ContextKind
from shared.sampling import GREEDY, Choice, Sampling

CUT = 2
HIDDEN, IDS = ContextKind.HIDDEN_STATES, ContextKind.TOKEN_IDS
# 64 positions, the smallest piece of memory: hidden states, and keys and values above the cut
HIDDEN_BYTES = 64 * ARCH.hidden_size * 4
CACHE_BYTES = 64 * (ARCH.layers - CUT) * 2 * ARCH.kv_size * 4
SESSION_BYTES = HIDDEN_BYTES + CACHE_BYTES


def new_cache(first_layer: int) -> KvCache:
    return KvCache(ARCH, first_layer, torch.device("cpu"), torch.float32)


class Harness:
    """A store whose clock stands still, and sessions with some context."""

    def __init__(self, **limits: object) -> None:
        self.clock = ManualClock()
        settled = StoreLimits(**limits)  # type: ignore[arg-type]
        self.store = ContextStore(ARCH, CUT, new_cache, settled, clock=self.clock)

    def open(self, name: int, kind: ContextKind = HIDDEN) -> HeldSession:
        return self.store.open(SessionKey("default", bytes([name])), GREEDY, kind)

    def filled(self, name: int, positions: int = 10) -> HeldSession:
        """A session in use whose context is in its cache."""
        session = self.open(name)
        self.store.append(session, 0, rows(0, positions))
        cache = self.store.cache_for(session, positions)
        cache.grow(positions)
        cache.length = positions
        session.final_state = (positions - 1, torch.zeros(ARCH.hidden_size))
        return session

    def idle(self, name: int, positions: int = 10) -> HeldSession:
        """Like :meth:`filled`, but its stream is gone; the next one is a second younger."""
        session = self.filled(name, positions)
        self.store.release(session)
        self.clock.advance(1)
        return session

    def holds(self, session: HeldSession) -> bool:
        return session.key in self.store


def rows(start: int, stop: int) -> npt.NDArray[np.float32]:
    """Hidden states that tell their position."""
    numbers = np.arange(start, stop, dtype=np.float32)
    return np.repeat(numbers[:, None], ARCH.hidden_size, axis=1)


def positions(session: HeldSession) -> list[int]:
    return [int(row[0]) for row in session.context[:]]


# ---- joins and cuts ------------------------------------------------------------------------------


def test_context_joins_and_overlap_is_skipped() -> None:
    harness = Harness()
    session = harness.open(1)
    harness.store.append(session, 0, rows(0, 5))
    harness.store.append(session, 5, rows(5, 70))
    harness.store.append(session, 3, rows(300, 310))  # held already
    harness.store.append(session, 65, np.concatenate([rows(900, 905), rows(70, 73)]))
    assert positions(session) == list(range(73))


def test_a_gap_is_refused_and_changes_nothing() -> None:
    harness = Harness()
    session = harness.open(1)
    harness.store.append(session, 0, rows(0, 5))
    with pytest.raises(ContextGapError, match="starts at 6"):
        harness.store.append(session, 6, rows(6, 7))
    assert session.held == 5


def test_the_models_last_position_is_the_last() -> None:
    harness = Harness()
    session = harness.open(1, IDS)
    harness.store.append(session, 0, np.zeros(ARCH.max_positions, np.int32))
    with pytest.raises(BudgetExceededError, match="positions at most"):
        harness.store.append(session, ARCH.max_positions, np.zeros(1, np.int32))
    assert session.held == ARCH.max_positions


def test_truncate_forgets_everything_from_there_on() -> None:
    harness = Harness()
    session = harness.filled(1)
    session.decisions = {p: Choice(p, -1.0) for p in range(1, 11)}
    harness.store.truncate(session, 6)
    assert (session.held, session.computed, session.final_state) == (6, 6, None)
    assert sorted(session.decisions) == [1, 2, 3, 4, 5]
    harness.store.append(session, 6, rows(60, 62))
    assert positions(session) == [0, 1, 2, 3, 4, 5, 60, 61]


def test_truncate_beyond_what_is_held_changes_nothing() -> None:
    harness = Harness()
    session = harness.filled(1)
    harness.store.truncate(session, 10)
    assert (session.held, session.computed) == (10, 10)
    assert session.final_state is not None


def test_float16_rounds_once_and_takes_half() -> None:
    harness = Harness(hidden_dtype=np.float16)
    session = harness.open(1)
    harness.store.append(session, 0, rows(0, 1) + np.float32(1 / 3))
    assert session.nbytes == HIDDEN_BYTES // 2
    assert session.context[:][0, 0] == np.float16(1 / 3)


# ---- opening -------------------------------------------------------------------------------------


def test_a_session_is_taken_up_where_it_was() -> None:
    harness = Harness()
    session = harness.idle(1)
    again = harness.open(1)
    assert again is session
    assert (again.in_use, again.held, again.computed) == (True, 10, 10)


@pytest.mark.parametrize(
    ("sampling", "kind"), [(Sampling(seed=1), HIDDEN), (GREEDY, IDS)], ids=["sampling", "kind"]
)
def test_a_session_is_reopened_with_its_own_fields(sampling: Sampling, kind: ContextKind) -> None:
    harness = Harness()
    session = harness.idle(1)
    with pytest.raises(InvalidMessageError, match="reopened"):
        harness.store.open(session.key, sampling, kind)
    assert not session.in_use
    assert harness.holds(session)


def test_tenants_ids_do_not_meet() -> None:
    harness = Harness()
    mine = harness.filled(1)
    theirs = harness.store.open(SessionKey("other", bytes([1])), GREEDY, HIDDEN)
    assert theirs is not mine
    assert theirs.held == 0


def test_the_longest_idle_session_makes_way_for_a_new_one() -> None:
    harness = Harness(max_sessions=2)
    first, second = harness.idle(1), harness.idle(2)
    harness.open(3)
    assert (harness.holds(first), harness.holds(second)) == (False, True)
    harness.open(2)
    with pytest.raises(BudgetExceededError, match="all 2 sessions"):
        harness.open(4)


# ---- the budget ----------------------------------------------------------------------------------


def test_bytes_are_counted_as_allocated() -> None:
    harness = Harness()
    session = harness.open(1)
    assert harness.store.held_bytes == 0
    harness.store.append(session, 0, rows(0, 1))
    assert harness.store.held_bytes == HIDDEN_BYTES
    cache = harness.store.cache_for(session, 65)
    assert harness.store.held_bytes == HIDDEN_BYTES + 2 * CACHE_BYTES
    cache.grow(65)
    assert cache.data.nbytes == 2 * CACHE_BYTES
    harness.store.append(session, 1, rows(1, 200))
    assert harness.store.held_bytes == 4 * HIDDEN_BYTES + 2 * CACHE_BYTES
    harness.store.drop(session)
    assert harness.store.held_bytes == 0


def test_idle_caches_go_first_the_longest_idle_before_others() -> None:
    harness = Harness(budget_bytes=2 * SESSION_BYTES)
    first, second = harness.idle(1), harness.idle(2)
    newcomer = harness.open(3)
    harness.store.append(newcomer, 0, rows(0, 5))
    assert (first.cache, first.computed, first.held) == (None, 0, 10)
    assert second.computed == 10
    assert harness.store.held_bytes <= 2 * SESSION_BYTES
    assert (first.final_state, second.final_state is None) == (None, False)


def test_then_idle_sessions_go_one_by_one() -> None:
    harness = Harness(budget_bytes=2 * SESSION_BYTES)
    first, second = harness.idle(1), harness.idle(2)
    newcomer = harness.open(3)
    harness.store.append(newcomer, 0, rows(0, 64))
    harness.store.cache_for(newcomer, 64)
    assert (first.cache, second.cache) == (None, None)
    assert harness.holds(first)
    assert harness.holds(second)
    harness.store.cache_for(newcomer, 65)
    assert (harness.holds(first), harness.holds(second)) == (False, True)
    harness.store.append(newcomer, 64, rows(64, 65))
    assert not harness.holds(second)
    assert harness.store.held_bytes == 2 * HIDDEN_BYTES + 2 * CACHE_BYTES


def test_a_session_in_use_loses_nothing() -> None:
    harness = Harness(budget_bytes=2 * SESSION_BYTES)
    busy, idle = harness.filled(1), harness.idle(2)
    newcomer = harness.open(3)
    with pytest.raises(BudgetExceededError, match="in use"):
        harness.store.append(newcomer, 0, rows(0, 400))
    assert (busy.held, busy.computed, newcomer.held) == (10, 10, 0)
    assert idle.computed == 10  # it would not have been enough, so nobody lost anything
    harness.store.append(newcomer, 0, rows(0, 64))
    assert busy.computed == 10
    assert idle.cache is None


def test_a_cache_that_does_not_fit_is_refused() -> None:
    harness = Harness(budget_bytes=SESSION_BYTES)
    session = harness.filled(1)
    with pytest.raises(BudgetExceededError):
        harness.store.cache_for(session, 65)
    assert session.computed == 10
    assert harness.store.held_bytes == SESSION_BYTES


def test_a_rebuilt_cache_is_counted_again() -> None:
    harness = Harness(budget_bytes=SESSION_BYTES + HIDDEN_BYTES)
    session = harness.idle(1)
    other = harness.open(2)
    harness.store.append(other, 0, rows(0, 5))
    harness.store.cache_for(other, 5)
    assert session.cache is None
    harness.store.drop(other)
    harness.open(1)
    assert harness.store.cache_for(session, 10).length == 0
    assert harness.store.held_bytes == SESSION_BYTES


# ---- expiry --------------------------------------------------------------------------------------


def test_idle_sessions_expire() -> None:
    harness = Harness(idle_seconds=60.0)
    busy, idle = harness.filled(1), harness.idle(2)
    harness.clock.advance(58)
    harness.store.expire()
    assert harness.holds(idle)
    harness.clock.advance(1)
    harness.store.expire()
    assert (harness.holds(idle), harness.holds(busy)) == (False, True)


def test_a_session_counts_as_idle_from_its_release_on() -> None:
    harness = Harness(idle_seconds=60.0)
    session = harness.filled(1)
    harness.clock.advance(100)
    harness.store.release(session)
    harness.store.expire()
    assert harness.holds(session)
    harness.clock.advance(60)
    assert harness.open(1) is not session  # opening looks at the clock too


def test_a_dropped_session_may_be_released() -> None:
    harness = Harness()
    session = harness.filled(1)
    harness.store.drop(session)
    harness.store.release(session)
    harness.store.drop(session)
    assert len(harness.store) == 0
