"""Plans that hold together, and those that do not."""

from __future__ import annotations

from typing import Any

import pytest

from edge.context_source import ContextCodec
from edge.plan import MAX_WINDOW, Plan, Schedule
from shared.errors import ConfigurationError


def test_a_window_of_nothing_is_the_papers_schedule() -> None:
    assert Plan(window=0).schedule is Schedule.BLOCKING
    assert Plan(window=1).schedule is Schedule.OPTIMISTIC


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(), "optimistic@0.8 window 8, fp16"),
        (Plan(0.9, 0), "blocking@0.9, fp16"),
        (Plan(verified=True, codec=ContextCodec.TOKENS), "verified@0.8 window 8, tokens"),
        (Plan(burst=4, codec=ContextCodec.TOKENS, window=2), "burst@0.8 window 2, tokens"),
    ],
)
def test_a_plan_says_what_it_is(plan: Plan, said: str) -> None:
    assert str(plan) == said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"window": -1}, "window -1"),
        ({"window": MAX_WINDOW + 1}, "window"),
        ({"burst": -1, "codec": ContextCodec.TOKENS}, "burst -1"),
        ({"burst": 1}, "--context tokens"),
        ({"lookahead": -1, "codec": ContextCodec.TOKENS}, "lookahead -1"),
        ({"lookahead": 65, "codec": ContextCodec.TOKENS}, "lookahead 65"),
        ({"lookahead": 1}, "--context tokens"),
        ({"lookahead": 1, "window": 0, "codec": ContextCodec.TOKENS}, "--schedule blocking"),
        ({"lookahead": 1, "burst": 1, "codec": ContextCodec.TOKENS}, "--burst"),
    ],
)
def test_what_does_not_hold_together_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Plan(**changes)
