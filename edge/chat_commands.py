"""The commands of ``tandem chat``: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge.chat import Chat, checked_target
from edge.chat_display import size
from edge.controller import Aim
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.generation import Mode
from shared.errors import ConfigurationError


@dataclass(frozen=True)
class Command:
    """``run(chat, argument)`` says whether the chat goes on."""

    argument: str
    help: str
    run: Callable[[Chat, str], bool]


def run_command(chat: Chat, line: str) -> bool:
    """Run the command that ``line`` (``/name argument``) holds; ``False`` ends the chat.

    Raises:
        ConfigurationError: there is no such command, or it cannot do that.
    """
    name, _, argument = line.removeprefix("/").strip().partition(" ")
    command = _COMMANDS.get(name)
    if command is None:
        raise ConfigurationError(
            f"there is no command /{name}: /help lists them (// begins a question with a slash)"
        )
    if argument.strip() and not command.argument:
        raise ConfigurationError(f"/{name} stands alone")
    return command.run(chat, argument.strip())


def _change(chat: Chat, **changes: Any) -> None:
    chat.service.set_controls(chat.service.controls.changed(changes))
    _show(chat)


def _show(chat: Chat) -> None:
    controls = chat.service.controls
    parts = [f"{controls.mode.value} mode"]
    if controls.mode is Mode.AUTO:
        parts.append(f"aim {controls.aim.value}")
    if controls.target_agreement is not None:
        parts.append(f"target agreement {controls.target_agreement:g}")
    elif controls.mode is Mode.COLLABORATIVE:
        threshold = DEFAULT_THRESHOLD if controls.threshold is None else controls.threshold
        parts.append(f"threshold {threshold:g}")
    if controls.private:
        parts.append("private")
    chat.display.notice(", ".join(parts))


def _mode(chat: Chat, argument: str) -> bool:
    if not argument:
        _show(chat)
        return True
    changes: dict[str, Any] = {"mode": argument}
    if argument == Mode.AUTO.value:
        changes["aim"] = chat.aim.value
    _change(chat, **changes)
    return True


def _threshold(chat: Chat, argument: str) -> bool:
    _change(chat, threshold=_share(argument, "/threshold"))
    return True


def _target(chat: Chat, argument: str) -> bool:
    target = checked_target(_share(argument, "/target"), greedy=not chat.sampling().temperature)
    _change(chat, target_agreement=target)
    return True


def _aim(chat: Chat, argument: str) -> bool:
    if not argument:
        raise ConfigurationError(f"/aim {'|'.join(aim.value for aim in Aim)}")
    _change(chat, aim=argument)
    chat.aim = chat.service.controls.aim
    return True


def _share(argument: str, name: str) -> float | None:
    """A number in [0, 1], or ``default``: none."""
    if argument == "default":
        return None
    try:
        return float(argument)
    except ValueError:
        raise ConfigurationError(f"{name} takes a number from 0 to 1, or default") from None


def _status(chat: Chat, _argument: str) -> bool:
    status = chat.service.status()
    _show(chat)
    link = {
        "none": "no cloud: this device alone",
        "up": "the cloud is there",
        "lost": "the cloud is silent",
        "unknown": "the cloud was not asked yet",
    }[status.link]
    if status.rtt_seconds is not None:
        link += f", round trip {status.rtt_seconds * 1000:.0f} ms"
    chat.display.notice(link)
    if status.plan:
        chat.display.notice(f"last answer: {status.plan}")
    if status.tokens_per_second is not None and status.device_share is not None:
        chat.display.notice(
            f"{status.answers + status.cancellations} answers, {status.tokens} tokens, "
            f"{status.tokens_per_second:.1f}/s, {status.device_share:.0%} on this device, "
            f"{size(status.uploaded_bytes)} up, {size(status.downloaded_bytes)} down"
        )
    engine = chat.service.engine
    used = len(engine.encode_chat(chat.conversation.messages("")))
    chat.display.notice(
        f"{status.model}: {chat.conversation.turns} turns, {used} of "
        f"{engine.bundle.manifest.architecture.max_positions} tokens"
    )
    return True


def _new(chat: Chat, _argument: str) -> bool:
    chat.conversation.forget()
    chat.display.notice("a new conversation")
    return True


def _help(chat: Chat, _argument: str) -> bool:
    for name, command in _COMMANDS.items():
        chat.display.notice(f"  {f'/{name} {command.argument}':<48} {command.help}")
    chat.display.notice(
        "Ctrl-C stops an answer; Ctrl-C twice or Ctrl-D leaves; // begins a question with a slash"
    )
    return True


def _quit(_chat: Chat, _argument: str) -> bool:
    return False


_COMMANDS = {
    "mode": Command("|".join(mode.value for mode in Mode), "who decides", _mode),
    "threshold": Command("NUMBER|default", "confidence that is enough (collaborative)", _threshold),
    "target": Command("NUMBER|default", "share of words that shall be the full model's", _target),
    "aim": Command("|".join(aim.value for aim in Aim), "what auto mode is after", _aim),
    "status": Command("", "mode, link, figures", _status),
    "new": Command("", "forget the conversation", _new),
    "help": Command("", "this list", _help),
    "quit": Command("", "leave", _quit),
}
