"""Which of several controls has a value that cannot be, for those who must name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.controls import Controls
from edge.generation import Mode
from shared.errors import ConfigurationError

# where a control means something, whatever the daemon's are
_AT_HOME = {
    "threshold": Controls(Mode.COLLABORATIVE),
    "target_agreement": Controls(Mode.COLLABORATIVE),
    "aim": Controls(Mode.AUTO),
}
_PLAIN = Controls(Mode.STANDALONE)


def wrong_control(changes: Mapping[str, Any]) -> tuple[str, ConfigurationError] | None:
    """The first of ``changes`` that is unknown or whose value cannot be, whatever the others are,
    and what is wrong with it; ``None`` where each is possible by itself."""
    for name, value in changes.items():
        try:
            _AT_HOME.get(name, _PLAIN).changed({name: value})
        except ConfigurationError as error:
            return name, error
    return None
