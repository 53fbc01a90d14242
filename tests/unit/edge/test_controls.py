from __future__ import annotations

from typing import Any

import pytest

from edge.controller import Aim
from edge.controls import Controls
from edge.generation import Mode
from shared.errors import ConfigurationError

AUTO = Controls(Mode.AUTO, target_agreement=0.95, aim=Aim.COST, private=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, AUTO),
        ({"max_tokens": 5}, Controls(Mode.AUTO, None, 0.95, Aim.COST, True, 5)),
        # what the new mode has no use for goes; that nothing may be told the cloud stays
        ({"mode": "standalone"}, Controls(Mode.STANDALONE, private=True)),
        ({"mode": "collaborative"}, Controls(Mode.COLLABORATIVE, None, 0.95, private=True)),
        (
            {"mode": "collaborative", "threshold": 0.7},
            Controls(Mode.COLLABORATIVE, 0.7, private=True),
        ),
        (
            {"mode": "cloud-only", "private": False},
            Controls(Mode.CLOUD_ONLY),
        ),
    ],
)
def test_changes(changes: dict[str, Any], expected: Controls) -> None:
    assert AUTO.changed(changes) == expected
    assert expected.changed(expected.as_record()) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mod": "auto"}, "'mod' is not a control"),
        ({"mode": "fast"}, "it is one of standalone"),
        ({"mode": 3}, "mode cannot be 3"),
        ({"mode": ["auto"]}, "mode cannot be"),
        ({"private": 1}, "private cannot be 1"),
        ({"max_tokens": True}, "max_tokens cannot be True"),
        ({"max_tokens": 0}, "at least 1"),
        ({"target_agreement": 1.5}, "within"),
        ({"target_agreement": float("nan")}, "within"),
        ({"threshold": 0.5}, "collaborative"),
        ({"mode": "cloud-only"}, "private forbids"),
        ({"mode": "collaborative", "aim": "cost"}, "an aim is for the mode auto"),
        ({"mode": "standalone", "target_agreement": 0.9}, "no use for target_agreement"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AUTO.changed(changes)
