"""The context store, one rule at a time (random operations: tests/property)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud.context_manager import ContextStore
from cloud.decisions import ENTRY_BYTES
from cloud.eviction import StoreLimits
from cloud.held_session import HeldSession, SessionKey
from cloud.kv_cache import KvCache
from prepare.tiny_model import TINY_ARCHITECTURE as ARCH
from shared.clock import ManualClock
from shared.errors import BudgetExceededError, ContextGapError, InvalidMessageError, NoRoomError
from shared.messages import ContextKind
from shared.sampling import GREEDY, Choice, Sampling

CUT = 2
IDS_BYTES = 64 * (4 + ENTRY_BYTES)  # of up to 64 positions, and of what is decided there
CACHE_BYTES = 64 * ARCH.layers * 2 * ARCH.kv_size * 4


class Fixture:
    """A store on a clock that is turned by hand."""

    def __init__(self, **limits: int | float) -> None:
        self.clock = ManualClock()
        self.store = ContextStore(
            ARCH,
            CUT,
            lambda first: KvCache(ARCH, first, torch.device("cpu"), torch.float32),
            StoreLimits(**limits),  # type: ignore[arg-type]
            clock=self.clock,
        )

    def open(self, name: int) -> HeldSession:
        return self.store.open(key(name), GREEDY, ContextKind.TOKEN_IDS)

    def idle(self, name: int) -> HeldSession:
        """A session with six ids and a cache, left by its stream one second ago."""
        session = self.open(name)
        self.fill(session, 6)
        self.store.release(session)
        self.clock.advance(1.0)
        return session

    def fill(self, session: HeldSession, count: int) -> None:
        self.store.append(session, session.held, np.arange(count, dtype=np.int32))
        cache = self.store.cache_for(session, session.held)
        cache.grow(session.held)
        cache.length = session.held


def key(name: int) -> SessionKey:
    return SessionKey("alice", bytes([name]) * 16)


def test_what_is_held_is_skipped_and_a_gap_refused() -> None:
    box = Fixture()
    session = box.open(1)
    box.store.append(session, 0, np.array([1, 2, 3], np.int32))
    box.store.append(session, 1, np.array([9, 9, 4], np.int32))
    box.store.append(session, 0, np.array([9], np.int32))
    assert session.context[:].tolist() == [1, 2, 3, 4]
    with pytest.raises(ContextGapError, match="0 to 4"):
        box.store.append(session, 5, np.array([5], np.int32))
    assert session.held == 4


def test_a_session_holds_no_more_than_the_models_positions() -> None:
    box = Fixture()
    session = box.open(1)
    box.store.append(session, 0, np.zeros(ARCH.max_positions, np.int32))
    with pytest.raises(BudgetExceededError, match="512 positions"):
        box.store.append(session, ARCH.max_positions, np.zeros(1, np.int32))
    assert session.context.nbytes == ARCH.max_positions * 4


def test_truncate_forgets_all_that_followed() -> None:
    box = Fixture()
    session = box.open(1)
    box.fill(session, 6)
    session.final_state = (5, torch.zeros(ARCH.hidden_size))
    session.decisions.update({3: Choice(1, 0.0), 4: Choice(1, 0.0), 6: Choice(1, 0.0)})
    box.store.truncate(session, 4)
    assert (session.held, session.computed) == (4, 4)
    assert session.final_state is None
    assert list(session.decisions) == [3, 4]  # which follow from what is left


def test_idle_sessions_lose_caches_before_any_loses_its_context() -> None:
    box = Fixture(budget_bytes=4 * IDS_BYTES + 3 * CACHE_BYTES)
    idle = [box.idle(name) for name in (1, 2, 3)]
    newest = box.open(4)
    box.store.append(newest, 0, np.zeros(3, np.int32))
    assert [session.computed for session in idle] == [6, 6, 6]  # it fits to the byte
    box.store.cache_for(newest, 3)
    assert [session.computed for session in idle] == [0, 6, 6]  # the longest idle gives first
    box.store.cache_for(newest, 128)
    assert [session.computed for session in idle] == [0, 0, 6]
    assert [session.held for session in idle] == [6, 6, 6]


def test_context_goes_when_caches_do_not_suffice() -> None:
    box = Fixture(budget_bytes=2 * CACHE_BYTES + 3 * IDS_BYTES)
    first, second = box.idle(1), box.idle(2)
    newest = box.open(3)
    box.store.append(newest, 0, np.zeros(128, np.int32))
    assert (first.computed, second.computed) == (0, 6)
    box.store.cache_for(newest, 128)
    assert key(1) not in box.store
    assert key(2) in box.store
    assert (second.held, second.computed) == (6, 0)


def test_what_cannot_fit_costs_nobody_anything() -> None:
    box = Fixture(budget_bytes=2 * (IDS_BYTES + CACHE_BYTES))
    idle, session = box.idle(1), box.open(2)
    box.store.append(session, 0, np.zeros(6, np.int32))
    before = box.store.held_bytes
    with pytest.raises(BudgetExceededError, match="beyond the cloud's memory budget") as refused:
        box.store.append(session, 6, np.zeros(506, np.int32))
    assert type(refused.value) is BudgetExceededError
    with pytest.raises(BudgetExceededError, match="beyond the cloud's memory budget"):
        box.store.cache_for(session, 512)
    assert (box.store.held_bytes, idle.computed, session.cache) == (before, 6, None)


def test_decisions_are_counted_and_go_with_their_session() -> None:
    box = Fixture()
    session = box.open(1)
    box.store.append(session, 0, np.zeros(ARCH.max_positions, np.int32))
    positions = range(1, ARCH.max_positions + 1)
    session.decisions.update((position, Choice(1, 0.0)) for position in positions)
    assert box.store.held_bytes == ARCH.max_positions * (4 + ENTRY_BYTES)
    assert session.decisions.nbytes == ARCH.max_positions * ENTRY_BYTES
    box.store.check()
    box.store.truncate(session, 0)
    assert box.store.held_bytes == ARCH.max_positions * (4 + ENTRY_BYTES)  # as allocated
    box.store.drop(session)
    assert (box.store.held_bytes, session.decisions.nbytes) == (0, 0)


def test_the_check_finds_decisions_that_are_not_counted() -> None:
    box = Fixture()
    session = box.open(1)
    box.store.append(session, 0, np.zeros(3, np.int32))
    box.store.check()
    session.decisions.grow(2 * session.decisions.capacity)
    with pytest.raises(AssertionError):
        box.store.check()


def test_context_without_room_for_what_is_decided_from_it_is_refused() -> None:
    box = Fixture(budget_bytes=64 * 4)  # for ids alone
    with pytest.raises(BudgetExceededError, match="beyond the cloud's memory budget"):
        box.store.append(box.open(1), 0, np.zeros(1, np.int32))


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        (0, "of 0 bytes"),
        (1, "of 1 byte:"),
        (1000, "of 1000 bytes"),
        (1536, "of 1.5 KiB"),
    ],
)
def test_a_small_budget_is_told_in_a_unit_that_shows_it(budget: int, named: str) -> None:
    box = Fixture(budget_bytes=budget)
    session = box.open(1)
    with pytest.raises(BudgetExceededError, match=named):
        box.store.append(session, 0, np.zeros(ARCH.max_positions, np.int32))


def test_another_sampling_forgets_what_was_decided_and_only_that() -> None:
    box = Fixture()
    session = box.idle(1)
    session.decisions[3] = Choice(1, 0.0)
    again = box.store.open(key(1), GREEDY, ContextKind.TOKEN_IDS)
    assert (dict(again.decisions), again.held, again.computed) == ({3: Choice(1, 0.0)}, 6, 6)
    box.store.release(again)
    again = box.store.open(key(1), Sampling(0.5), ContextKind.TOKEN_IDS)
    assert (again.sampling, dict(again.decisions)) == (Sampling(0.5), {})
    assert (again.held, again.computed) == (6, 6)


def test_context_that_does_not_fit_leaves_the_clouds_own_words() -> None:
    box = Fixture(budget_bytes=2 * IDS_BYTES + CACHE_BYTES)
    box.store.append(box.open(1), 0, np.zeros(1, np.int32))
    session = box.open(2)
    box.store.append_own(session, 7)
    with pytest.raises(BudgetExceededError):
        box.store.append(session, 0, np.zeros(512, np.int32))
    assert (session.held, session.own) == (1, 1)


def test_sessions_in_use_give_their_caches_unless_they_work_and_nothing_else() -> None:
    box = Fixture(budget_bytes=4 * IDS_BYTES + 2 * CACHE_BYTES, idle_seconds=5.0)
    first, second = box.open(1), box.open(2)
    for session in (first, second):
        box.fill(session, 6)
        session.working = True
    box.clock.advance(100.0)
    third = box.open(3)
    with pytest.raises(NoRoomError):
        box.store.append(third, 0, np.zeros(1, np.int32))
    assert (first.computed, second.computed) == (6, 6)
    box.store.rest(second)
    box.clock.advance(1.0)
    box.store.rest(first)
    box.store.append(third, 0, np.zeros(1, np.int32))
    with pytest.raises(NoRoomError):  # nobody asked
        box.store.cache_for(third, 1, asked=False)
    box.store.cache_for(third, 1)
    assert (first.computed, second.computed) == (6, 0)
    assert (first.held, second.held) == (6, 6)


def test_idle_sessions_expire() -> None:
    box = Fixture(idle_seconds=5.0)
    box.idle(1)
    box.clock.advance(3.5)
    box.store.expire()
    assert key(1) in box.store
    box.clock.advance(0.5)
    box.store.expire()
    assert len(box.store) == box.store.held_bytes == 0


def test_an_idle_session_gives_its_place_and_one_in_use_does_not() -> None:
    box = Fixture(max_sessions=2)
    box.idle(1)
    box.open(2)
    box.open(3)
    assert key(1) not in box.store
    with pytest.raises(BudgetExceededError, match="all 2 sessions"):
        box.open(4)


def test_a_session_is_reopened_with_its_own_kind_of_context() -> None:
    box = Fixture()
    session = box.idle(1)
    with pytest.raises(InvalidMessageError):
        box.store.open(key(1), GREEDY, ContextKind.HIDDEN_STATES)
    assert box.open(1) is session
    other = SessionKey("bob", key(1).session_id)
    assert box.store.open(other, GREEDY, ContextKind.TOKEN_IDS).held == 0
