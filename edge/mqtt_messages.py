"""What edges and those who look after them say to each other over MQTT: JSON, typed.

What an edge says may gain fields, so readers ignore those that they do not know; a command with an
unknown field is refused.  ``docs/mqtt-schema.json`` is made from this file
(:mod:`edge.mqtt_schema`).
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json

from edge.controller import Aim
from edge.generation import Mode
from shared.errors import InvalidMessageError

MAX_PAYLOAD_BYTES = 16 * 1024
MAX_ERROR_LENGTH = 500
_ID = r"^[A-Za-z0-9._:-]{1,64}$"
_ID_PATTERN = re.compile(_ID[1:-1])

CommandId = Annotated[str, Field(pattern=_ID, description="Chosen by the sender, new each time.")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Link = Literal["none", "up", "lost", "unknown"]
Amount = Annotated[float, Field(ge=0.0)]


class _Said(BaseModel):
    """Of an edge's: whoever reads it ignores what a newer edge adds."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    def payload(self) -> bytes:
        """As it travels."""
        return self.model_dump_json().encode()


class Status(_Said):
    """Retained under ``…/status``; the broker says ``offline`` for an edge that vanishes."""

    state: Literal["online", "offline"]
    version: str = Field(max_length=64, description="Of Tandem.")
    model: str = Field(max_length=200, description="Name of the bundle's model.")
    mode: Mode
    draining: bool = Field(description="It takes no new work.")
    started: AwareDatetime = Field(description="When the daemon began to report.")


class Telemetry(_Said):
    """Every few seconds under ``…/telemetry``; ``null`` is not known."""

    at: AwareDatetime
    link: Link = Field(description="To the cloud.")
    active: Count = Field(description="Answers being made.")
    waiting: Count = Field(description="Requests whose turn has not come.")
    tokens_per_second: Amount | None = Field(description="Of the last 20 answers.")
    device_share: Share | None = Field(description="Of their tokens, decided on the device.")
    rtt_seconds: Amount | None = Field(description="Round trip to the cloud, of late.")
    answers: Count = Field(description="Finished, since the start, like the counts below.")
    failures: Count
    cancellations: Count
    tokens: Count
    uploaded_bytes: Count
    downloaded_bytes: Count
    memory_bytes: Count | None = Field(description="Resident memory of the daemon's process.")
    uptime_seconds: Amount


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ControlChanges(_Asked):
    """Controls to change; the others stay, or go back to their defaults where a change makes them
    meaningless."""

    mode: Mode | None = None
    threshold: Share | None = None
    target_agreement: Share | None = None
    aim: Aim | None = None
    private: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None

    def as_changes(self) -> dict[str, Any]:
        """What was given, as ``Controls.changed`` takes it."""
        return self.model_dump(mode="json", exclude_unset=True)


class NoArguments(_Asked):
    """An empty object."""


class SetControls(_Asked):
    """How answers are made from the next one on; acknowledged with all controls."""

    id: CommandId
    name: Literal["set_controls"]
    arguments: ControlChanges = ControlChanges()


class Reload(_Asked):
    """Load the bundle in the folder of the one in use again, between two answers.

    No folder can be named: who may send commands does not get to read the device's disk.
    """

    id: CommandId
    name: Literal["reload"]
    arguments: NoArguments = NoArguments()


class Drain(_Asked):
    """Take no new work, end what is begun, then end the daemon; acknowledged at its beginning."""

    id: CommandId
    name: Literal["drain"]
    arguments: NoArguments = NoArguments()


class Ping(_Asked):
    """Acknowledge, and nothing else."""

    id: CommandId
    name: Literal["ping"]
    arguments: NoArguments = NoArguments()


Command = Annotated[SetControls | Reload | Drain | Ping, Field(discriminator="name")]
_NAMES = ("set_controls", "reload", "drain", "ping")
COMMANDS: TypeAdapter[SetControls | Reload | Drain | Ping] = TypeAdapter(Command)


class ErrorCode(StrEnum):
    """Why a command was not carried out."""

    INVALID = "invalid"  # not a command, or arguments of the wrong kind
    RETAINED = "retained"  # it may be from any time
    REUSED_ID = "reused_id"  # another command had this id
    BUSY = "busy"  # too many commands at once
    REFUSED = "refused"  # the daemon cannot do that, and says why
    FAILED = "failed"  # the daemon's own fault; its log says more


class Problem(_Said):
    """Why not."""

    code: ErrorCode
    message: str = Field(max_length=MAX_ERROR_LENGTH)


class Acknowledgement(_Said):
    """The answer to one command, under ``…/acknowledgement``."""

    id: CommandId
    ok: bool
    error: Problem | None = None
    result: dict[str, JsonValue] | None = None

    @classmethod
    def refusal(cls, command_id: str, code: ErrorCode, message: str) -> Acknowledgement:
        """A negative one; a long message is cut."""
        problem = Problem(code=code, message=message[:MAX_ERROR_LENGTH])
        return cls(id=command_id, ok=False, error=problem)


class BadCommandError(InvalidMessageError):
    """A payload that is no command; ``command_id`` is its id, where it could be read."""

    def __init__(self, message: str, command_id: str | None = None) -> None:
        super().__init__(message)
        self.command_id = command_id


def read_command(payload: bytes) -> SetControls | Reload | Drain | Ping:
    """The command that ``payload`` holds; raise :class:`BadCommandError` if it holds none."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise BadCommandError(f"{len(payload)} bytes; {MAX_PAYLOAD_BYTES} are the most")
    try:
        value = from_json(payload, allow_inf_nan=False)
    except ValueError:
        raise BadCommandError("not JSON") from None
    command_id = value.get("id") if isinstance(value, dict) else None
    if not isinstance(command_id, str) or not _ID_PATTERN.fullmatch(command_id):
        command_id = None
    try:
        return COMMANDS.validate_json(payload)
    except ValidationError as error:
        raise BadCommandError(what_is_wrong(error), command_id) from None


def what_is_wrong(error: ValidationError) -> str:
    """The first few complaints about a command in one line, without what was given."""
    complaints = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False)[:3]:
        path = problem["loc"]
        if path and path[0] in _NAMES:  # of the command, which the sender knows
            path = path[1:]
        where = ".".join(str(part) for part in path)[:100] or "command"
        known = f"unknown: the commands are {', '.join(_NAMES)}"
        complaints.append(
            f"{where}: {known if problem['type'] == 'union_tag_invalid' else problem['msg']}"
        )
    line = "; ".join(complaints)[:MAX_ERROR_LENGTH]  # names of fields are the sender's choice
    return "".join(char if char.isprintable() else "\ufffd" for char in line)


def digest_of(payload: bytes) -> bytes:
    """Tells a command that comes again from another one with its id."""
    return hashlib.sha256(payload).digest()
