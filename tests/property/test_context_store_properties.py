"""The context store under random operations: its bytes, its budget, and who loses what first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cloud.context_manager import ContextStore
from cloud.eviction import StoreLimits
from cloud.held_session import HeldSession, SessionKey
from cloud.kv_cache import KvCache
from shared.clock import ManualClock
from shared.errors import BudgetExceededError, ContextGapError, InvalidMessageError
from shared.messages import ContextKind
from shared.model_bundle import Architecture
from shared.sampling import GREEDY, Choice

ARCH = Architecture(
    layers=3,
    hidden_size=8,
    heads=2,
    kv_heads=1,
    head_size=4,
    intermediate_size=8,
    vocabulary_size=16,
    max_positions=200,
    rope_theta=10_000.0,
    norm_epsilon=1e-5,
)
CUT, IDLE_SECONDS, MAX_SESSIONS, BUDGET = 1, 100.0, 4, 19_000


@dataclass(frozen=True)
class _Size:
    context: int
    cache: int
    in_use: bool
    working: bool


class StoreMachine(RuleBasedStateMachine):
    """Streams that come and go; ``self.ids`` holds what each session should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        limits = StoreLimits(BUDGET, MAX_SESSIONS, IDLE_SECONDS)
        self.store = ContextStore(ARCH, CUT, self._new_cache, limits, clock=self.clock)
        self.open: dict[SessionKey, HeldSession] = {}
        self.ids: dict[SessionKey, list[int]] = {}
        self.own: dict[SessionKey, list[int]] = {}  # what the cloud goes on with by itself

    @staticmethod
    def _new_cache(first_layer: int) -> KvCache:
        return KvCache(ARCH, first_layer, torch.device("cpu"), torch.float32)

    def _sizes(self) -> dict[SessionKey, _Size]:
        return {
            key: _Size(held.kept_bytes, held.cache_bytes, held.in_use, held.working)
            for key, held in self.store._sessions.items()
        }

    def _pick(self, data: st.DataObject) -> HeldSession:
        return self.open[data.draw(st.sampled_from(sorted(self.open, key=str)))]

    @initialize(lengths=st.lists(st.integers(1, 64), min_size=3, max_size=3))
    def some_are_idle(self, lengths: list[int]) -> None:
        for name, length in enumerate(lengths):
            self.connect(name, False)
            _, session = self.open.popitem()
            self._append(session, 0, length)
            self._compute(session)
            self.store.release(session)
            self.clock.advance(1.0)

    @rule(name=st.integers(0, 5), another_kind=st.sampled_from([False, False, False, True]))
    def connect(self, name: int, another_kind: bool) -> None:
        kind = ContextKind.TOKEN_IDS if name % 2 == another_kind else ContextKind.HIDDEN_STATES
        key = SessionKey("tenant", bytes([name]) * 16)
        if key in self.open:
            return
        held = self.store._sessions.get(key)
        try:
            session = self.store.open(key, GREEDY, kind)
        except BudgetExceededError:
            assert len(self.open) == MAX_SESSIONS
            return
        except InvalidMessageError:
            assert held is not None
            assert held.kind is not kind
            return
        if session is not held:
            self.ids[key] = []
        self.open[key] = session

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        back=st.integers(-1, 5),
        count=st.sampled_from([1, 7, 70, 130]),
        compute=st.booleans(),
    )
    def append(self, data: st.DataObject, back: int, count: int, compute: bool) -> None:
        session = self._pick(data)
        self._append(session, back, count)
        if compute:
            self._compute(session)

    def _append(self, session: HeldSession, back: int, count: int) -> None:
        ids = self.ids[session.key]
        position = max(0, len(ids) - back)
        own = self.own.get(session.key, [])
        # now and then what the cloud said itself, or begins with it
        coming = own if count % 2 else [(len(ids) * 31 + i) % 16 for i in range(count)]
        new = [*ids[position:], *coming, *(i % 16 for i in range(count))][:count]
        rows = np.array(new, np.int32)
        if session.kind is ContextKind.HIDDEN_STATES:
            rows = np.repeat(rows[:, None], ARCH.hidden_size, 1).astype(np.float32)
        before = self._sizes()
        try:
            self.store.append(session, position, rows)
        except ContextGapError:
            assert position > len(ids)
            assert self._sizes() == before
        except BudgetExceededError:
            assert self._sizes() == before
        else:
            added = new[max(0, len(ids) - position) :]
            ids.extend(added)
            kept = own[len(added) :] if own[: len(added)] == added[: len(own)] else []
            self.own[session.key] = kept if added else own
            self._check_order(before)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), token_id=st.integers(0, 15))
    def say_ahead(self, data: st.DataObject, token_id: int) -> None:
        session = self._pick(data)
        if session.kind is not ContextKind.TOKEN_IDS:
            return
        before = self._sizes()
        try:
            self.store.append_own(session, token_id)
        except BudgetExceededError:
            assert self._sizes() == before
        else:
            self.own.setdefault(session.key, []).append(token_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        self._compute(self._pick(data))

    def _compute(self, session: HeldSession) -> None:
        before = self._sizes()
        try:
            cache = self.store.cache_for(session, session.held)
        except BudgetExceededError:
            assert self._sizes() == before
            return
        cache.grow(session.held)
        cache.length = session.held
        if session.held:
            session.decisions[session.held] = Choice(0, 0.0)
        self._check_order(before)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), asks=st.booleans())
    def ask_or_rest(self, data: st.DataObject, asks: bool) -> None:
        session = self._pick(data)
        self.clock.advance(1.0)
        if asks:
            session.working = True
        else:
            self.store.rest(session)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), position=st.integers(0, 130))
    def truncate(self, data: st.DataObject, position: int) -> None:
        session = self._pick(data)
        self.store.truncate(session, position)
        confirmed = len(self.ids[session.key])
        del self.own.get(session.key, [])[max(0, position - confirmed) :]
        del self.ids[session.key][position:]
        assert all(decided <= position for decided in session.decisions)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), forget=st.booleans())
    def disconnect(self, data: st.DataObject, forget: bool) -> None:
        session = self.open.pop(self._pick(data).key)
        self.own.pop(session.key, None)
        if forget:
            self.store.drop(session)
        self.store.release(session)

    @rule(seconds=st.sampled_from([1.0, 1.0, 30.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.store.expire()
        for held in self.store._sessions.values():
            assert held.in_use or self.clock() - held.last_used < IDLE_SECONDS

    def _check_order(self, before: dict[SessionKey, _Size]) -> None:
        """Idle sessions lose caches first, and context only when no idle cache is left; then those
        in use lose caches that are not worked on."""
        after = self._sizes()
        gone = before.keys() - after.keys()
        assert not any(before[key].in_use for key in gone)
        if gone:
            assert not any(size.cache for size in after.values() if not size.in_use)
        lost = {key for key in after if after[key].cache < before[key].cache}
        assert not any(before[key].working for key in lost)
        if any(before[key].in_use for key in lost):
            assert all(size.in_use for size in after.values())
        for key, size in after.items():
            if not size.in_use:
                assert size.context == before[key].context  # all of it, or nothing is lost

    @invariant()
    def counts_its_bytes_and_keeps_its_budget(self) -> None:
        total = 0
        for held in self.store._sessions.values():
            allocated = held.cache.data.nbytes if held.cache else 0
            assert allocated <= held.cache_bytes
            assert held.computed <= held.held
            total += held.context.nbytes + held.decisions.nbytes + held.cache_bytes
        assert self.store.held_bytes == total <= BUDGET
        assert len(self.store) <= MAX_SESSIONS

    @invariant()
    def agrees_with_its_own_check(self) -> None:
        self.store.check()

    @invariant()
    def holds_what_was_sent(self) -> None:
        for key, session in self.open.items():
            assert self.store._sessions[key] is session
        for key, held in self.store._sessions.items():
            rows = held.context[:]
            ids = rows if rows.ndim == 1 else rows[:, 0]
            own = self.own.get(key, [])
            assert ids.tolist() == [*self.ids[key], *own]
            assert held.own == len(own)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestContextStore = StoreMachine.TestCase
