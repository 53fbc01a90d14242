"""Every error that Tandem raises for input that is not its own.

::

    TandemError
    ├── ConfigurationError        a flag, setting or file that the user can mend
    │   ├── BundleError           a bundle that is missing, damaged or of another version
    │   ├── PromptTooLongError    a prompt that the model cannot hold
    │   └── LinkError             a simulated link, preset or packet trace that cannot be
    ├── InvalidMessageError       a message whose fields do not hold together
    │   ├── CodecError            a tensor payload that cannot be decoded
    │   └── ProtocolVersionError  edge and cloud speak different versions of the protocol
    ├── SessionError              one session ended; every other goes on
    │   ├── FingerprintMismatchError   edge and cloud hold different bundles
    │   ├── ContextGapError       context that does not join what the cloud holds
    │   ├── BudgetExceededError   a size or count limit of the cloud was reached
    │   │   └── NoRoomError       for now: what others use leaves no room
    │   ├── SessionTakenOverError another stream goes on with the session
    │   └── CloudInternalError    a fault of the cloud's own; its log says which
    ├── AuthenticationError       a token or certificate was refused
    ├── BusyError                 the daemon has as many answers waiting as it lets wait
    │   └── DrainingError         the daemon takes no new work
    └── CloudUnavailableError     the cloud cannot be reached (after bounded retries)
        ├── CloudShuttingDownError     the cloud drains and takes no new work
        └── DeadlineExceededError      the cloud did not answer in time

``assert`` is kept for invariants of our own.  ``exit_code`` is what the command line returns.
"""

from __future__ import annotations


class TandemError(Exception):
    """Base of every typed error; the message says what happened and what to do."""

    exit_code = 1


class ConfigurationError(TandemError):
    """A flag, setting or file that the user can mend."""

    exit_code = 2


class BundleError(ConfigurationError):
    """A bundle that is missing, damaged or of another version."""


class PromptTooLongError(ConfigurationError):
    """A prompt that the model cannot hold, however it is divided into tokens."""


class LinkError(ConfigurationError):
    """A simulated link, preset or packet trace that cannot be: unknown, malformed, impossible."""


class InvalidMessageError(TandemError):
    """A message whose fields do not hold together."""


class CodecError(InvalidMessageError):
    """A tensor payload that cannot be decoded within its declared shape and limits."""


class ProtocolVersionError(InvalidMessageError):
    """Edge and cloud speak different versions of the protocol."""

    exit_code = 2


class SessionError(TandemError):
    """One session ended; every other goes on."""


class FingerprintMismatchError(SessionError):
    """Edge and cloud hold different bundles."""

    exit_code = 2


class ContextGapError(SessionError):
    """Context that does not join what the cloud holds."""


class BudgetExceededError(SessionError):
    """A size or count limit of the cloud was reached."""


class NoRoomError(BudgetExceededError):
    """What others use leaves no room at the moment; trying again helps."""


class SessionTakenOverError(SessionError):
    """Another stream goes on with the session; this one ended."""


class CloudInternalError(SessionError):
    """A fault of the cloud's own ended the session; the cloud's log says which."""


class AuthenticationError(TandemError):
    """A token or certificate was refused."""

    exit_code = 3


class BusyError(TandemError):
    """The daemon has as many answers waiting as it lets wait: try again in a moment."""


class DrainingError(BusyError):
    """The daemon takes no new work."""


class CloudUnavailableError(TandemError):
    """The cloud cannot be reached (after bounded retries)."""

    exit_code = 4


class CloudShuttingDownError(CloudUnavailableError):
    """The cloud drains and takes no new work."""


class DeadlineExceededError(CloudUnavailableError):
    """The cloud did not answer in time."""
