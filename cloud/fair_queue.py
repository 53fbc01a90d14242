"""Whose work is in the next pass: fair between tenants, by the rows that the model runs for them.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): every tenant's account grows by what
is taken of its work, and the tenant with the smallest account is next.  One that had nothing to do
meanwhile starts where the others are, so that nobody saves up.

Within a tenant short work (tokens, drafts to check) and long work (prefills, catch-up) get half of
the rows each while there is both, so that tokens do not wait for all prompts that came before them;
of either the oldest goes first.

Urgent work (somebody waits for a token) goes before catch-up (context that arrived ahead of a
question).  So that catch-up gets on as well, one piece of it rides in every so many urgent passes.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

# rows that are taken at once of one piece of work; what has more is long
BITE = 16
# urgent passes that catch-up lets by, before a piece of it rides along in half of one
PATIENCE = 8
# rows of catch-up at once, so that a question that comes meanwhile does not wait for long
CATCH_UP_ROWS = 64
# a pass over few rows takes as long as one over a single row (the weights are read once), so fewer
# than these wait for a question to take them along
CATCH_UP_FROM = 16


class Item(Protocol):
    """Work that waits."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for it; may become true while it waits."""
        ...

    @property
    def rows(self) -> int:
        """Rows that are still to be run, 0 or more."""
        ...


T = TypeVar("T", bound=Item)


class FairQueue(Generic[T]):
    """Work that waits, and each tenant's account."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[T]] = {}  # never an empty list
        self._accounts: dict[str, int] = {}
        self._balances: dict[str, int] = {}  # rows of long work less those of short, a tenant
        self._now = 0  # the account of whoever was served last, before it was charged
        self._passed_over = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, item: T, *, first: bool = False) -> None:
        """Add ``item``; ``first`` puts what was taken in part back to the front of its tenant's."""
        tenant = item.tenant
        if tenant not in self._waiting:
            self._waiting[tenant] = []
            self._accounts[tenant] = max(self._accounts.get(tenant, 0), self._now)
        self._waiting[tenant].insert(0 if first else len(self._waiting[tenant]), item)

    def remove(self, item: T) -> bool:
        """Take ``item`` out; ``False`` where it does not wait."""
        waiting = self._waiting.get(item.tenant, [])
        index = next((i for i, other in enumerate(waiting) if other is item), None)
        if index is None:
            return False
        del waiting[index]
        if not waiting:
            del self._waiting[item.tenant]
        return True

    def drain(self) -> list[T]:
        """Take everything out."""
        items = [item for waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        return items

    def take(self, room: int) -> list[tuple[T, int]]:
        """Take out the work of the next pass, ``room`` rows at most: items, and how many of each
        one's rows.  What does not fit whole is taken in part."""
        if not self._waiting:
            self._accounts.clear()  # nobody waits, so nobody has been served too much
            self._balances.clear()
            self._now = self._passed_over = 0
            return []
        items = [item for waiting in self._waiting.values() for item in waiting]
        urgent = [item for item in items if item.urgent]
        taken: dict[T, int] = {}
        if not urgent:
            self._passed_over = 0
            self._fill(items, room, taken)
        else:
            later = [item for item in items if not item.urgent]
            self._passed_over = self._passed_over + 1 if later else 0
            if self._passed_over > PATIENCE:
                self._passed_over = 0
                first = min(later, key=lambda item: self._accounts[item.tenant])
                room -= self._charge(first, min(first.rows, max(1, room // 2)), taken)
            self._fill(urgent, room, taken)
        for item in taken:
            self.remove(item)
        return list(taken.items())

    def _fill(self, items: list[T], room: int, taken: dict[T, int]) -> None:
        """Take of ``items``, in the order of their arrival a tenant, bite by bite."""
        lanes: dict[str, tuple[deque[T], deque[T]]] = {}
        for item in items:
            lanes.setdefault(item.tenant, (deque(), deque()))[item.rows > BITE].append(item)
        while room > 0 and lanes:
            tenant = min(lanes, key=lambda name: self._accounts[name])
            short, long = lanes[tenant]
            if not (short and long):
                self._balances[tenant] = 0
            lane = short if (short and self._balances.get(tenant, 0) >= 0) or not long else long
            item = lane[0]
            left = item.rows - taken.get(item, 0)
            bite = min(left, BITE, room)
            cost = self._charge(item, bite, taken)
            room -= cost
            if short and long:
                self._balances[tenant] = self._balances.get(tenant, 0) + (
                    cost if lane is long else -cost
                )
            if bite == left:
                lane.popleft()
            if not (short or long):
                del lanes[tenant]

    def _charge(self, item: T, rows: int, taken: dict[T, int]) -> int:
        """Note that ``rows`` more of ``item`` are taken; return what that costs its tenant."""
        cost = max(1, rows)
        self._now = max(self._now, self._accounts[item.tenant])
        self._accounts[item.tenant] += cost
        taken[item] = taken.get(item, 0) + rows
        return cost
