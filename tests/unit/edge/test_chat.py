"""What a chat remembers, what its commands change, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from edge.chat import Chat
from edge.chat_commands import run_command
from edge.chat_conversation import Conversation
from edge.chat_display import ChatDisplay
from edge.cloud_channel import CloudEndpoint
from edge.controller import Aim
from edge.controls import Controls
from edge.generation import Mode
from edge.service import EdgeService
from shared.chat import Message
from shared.errors import ConfigurationError
from shared.sampling import GREEDY, Sampling
from tests.cloud_harness import tiny_bundle


def encode(messages: Sequence[Message]) -> tuple[int, ...]:
    """A token a character."""
    return tuple(ord(letter) for message in messages for letter in message.content)


def conversation(turns: int) -> Conversation:
    """Turns of ten tokens each, behind a system message of four."""
    talk = Conversation("syst")
    for number in range(turns):
        talk.add(f"quest{number}", "answ")
    return talk


def test_what_was_said_comes_in_order() -> None:
    roles = [(m.role, m.content) for m in conversation(1).messages("next")]
    assert roles == [
        ("system", "syst"), ("user", "quest0"), ("assistant", "answ"), ("user", "next"),
    ]  # fmt: skip
    assert [m.content for m in conversation(2).messages("next", skip=1)][1] == "quest1"
    assert [m.role for m in Conversation().messages("x")] == ["user"]


@pytest.mark.parametrize(
    ("turns", "max_tokens", "forgotten"),
    [
        (7, 1000, 0),  # 4 + 70 + 1 = 75: a quarter is free
        (8, 1000, 4),  # 85: down to half, 4 + 40 + 1
        (8, 10, 0),  # the answer needs no quarter
        (9, 10, 3),  # 95: an answer's room and a quarter
        (40, 1000, 36),
    ],
)
def test_the_oldest_turns_go_first(turns: int, max_tokens: int, forgotten: int) -> None:
    talk = conversation(turns)
    prompt = talk.prompt("?", encode, 100, max_tokens)
    assert prompt.forgotten == forgotten
    assert prompt.ids == encode(talk.messages("?", forgotten))
    assert talk.turns == turns, "only the chat forgets"


def test_a_question_that_never_fits_is_refused_and_nothing_forgotten() -> None:
    talk = conversation(2)
    with pytest.raises(ConfigurationError, match="shorten"):
        talk.prompt("x" * 96, encode, 100, 10)
    assert talk.turns == 2
    assert talk.prompt("x" * 95, encode, 100, 10).forgotten == 2


def chat(sampling: Sampling = GREEDY, private: bool = False, **controls: Any) -> Chat:
    """One whose cloud nobody asks."""
    service = EdgeService(
        tiny_bundle(),
        Controls(Mode.AUTO, private=private, **controls),
        precision="float32",
        endpoint=CloudEndpoint("localhost:1"),
    )
    return Chat(service, ChatDisplay(), Conversation(), lambda: sampling)


def test_private_and_aim_outlive_another_mode() -> None:
    talk = chat(private=True, aim=Aim.COST)
    with pytest.raises(ConfigurationError, match="private forbids"):
        run_command(talk, "/mode cloud-only")
    assert talk.service.controls.mode is Mode.AUTO
    assert run_command(talk, "/aim quality")
    assert run_command(talk, "/mode standalone")
    assert run_command(talk, "/mode auto")
    controls = talk.service.controls
    assert (controls.private, controls.aim) == (True, Aim.QUALITY)


def test_threshold_and_target_replace_each_other() -> None:
    talk = chat()
    run_command(talk, "/mode  collaborative ")
    run_command(talk, "/threshold 0.25")
    assert talk.service.controls.threshold == 0.25
    run_command(talk, "/target 0.94")
    record = talk.service.controls.as_record()
    assert (record["threshold"], record["target_agreement"]) == (None, 0.94)
    run_command(talk, "/target default")
    assert talk.service.controls.target_agreement is None
    before = talk.service.controls
    for line in ("/threshold 2", "/threshold nan", "/target 1", "/threshold", "/aim cost", "/"):
        with pytest.raises(ConfigurationError):
            run_command(talk, line)
    assert talk.service.controls == before, "what is refused changes nothing"


def test_a_target_is_for_greedy_answers() -> None:
    with pytest.raises(ConfigurationError, match="greedy"):
        run_command(chat(Sampling(1.0, 1.0, 3)), "/target 0.9")


def test_new_forgets_and_quit_ends(capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat()
    talk.conversation.add("a", "b")
    assert run_command(talk, "/new")
    assert talk.conversation.turns == 0
    assert run_command(talk, "/help")
    assert "/target" in capsys.readouterr().err
    assert not run_command(talk, "/quit")
