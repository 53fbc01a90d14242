"""``tandem chat`` as a person and as a pipe use it: real processes, a real terminal and cloud."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edge.chat import Chat
from edge.chat_conversation import Conversation
from edge.chat_display import ChatDisplay
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.service import EdgeService
from shared.chat import ChatTemplate, Message
from shared.sampling import GREEDY
from simulator.local_cloud import LocalCloud
from tests.cloud_harness import eventually, tiny_bundle
from tests.edge_harness import BreakableLink, edge_engine, full_answer, options_for
from tests.pty_process import PtyProcess

COMMAND = ["-m", "shared.cli", "chat", "--bundle", str(tiny_bundle().folder)]
COMMAND += ["--precision", "float32", "--threads", "1"]
SECONDS = 120
DEVICE_COLOURS = re.compile(r"\x1b\[3[23]m")  # green, yellow
CLOUD_COLOUR = re.compile(r"\x1b\[1;35m")
WORD = r"\x1b\[(1;)?3[235]m"  # of whatever origin
ANY_COLOUR = re.compile(r"\x1b\[(\d+;)*(3|9)[0-7]m")


def piped(
    *arguments: str, lines: str | bytes, expect: int = 0, **environment: str
) -> tuple[str, str]:
    """Standard output and error of a chat whose lines come through a pipe."""
    done = subprocess.run(
        [sys.executable, *COMMAND, *arguments],
        input=lines.encode() if isinstance(lines, str) else lines,
        capture_output=True,
        timeout=SECONDS,
        env=os.environ | {"COLUMNS": "200"} | environment,
        check=False,
    )
    out, errors = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == expect, errors
    assert "Traceback" not in errors
    return out, errors


def long_question(tokens: int) -> str:
    """A question that the full model answers at such length (its text is noise, and may end at
    any token)."""
    tokenizer = Tokenizer.from_file(str(tiny_bundle().folder / "tokenizer.json"))
    template = ChatTemplate(tiny_bundle().manifest.tokenizer.chat_template)
    for number in range(100):
        question = f"tell me {number}"
        ids = tokenizer.encode(template.render([Message("user", question)])).ids
        if len(full_answer(ids, tokens)) == tokens:
            return question
    raise AssertionError("no question has a long answer")


async def answer_to(engine: EdgeEngine, said: Sequence[str], max_tokens: int) -> str:
    """The device's own answer to the last of ``said``, user and assistant in turn."""
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    options = options_for(Mode.STANDALONE, max_tokens=max_tokens)
    return (await engine.generate(engine.encode_chat(messages), options)).text


async def test_a_pipe_gets_the_answers_alone_each_on_all_that_was_said() -> None:
    out, errors = piped("--max-tokens", "16", lines="hello\n\nand you?\n/new\nhello")
    async with edge_engine(None) as engine:
        first = await answer_to(engine, ["hello"], 16)
        second = await answer_to(engine, ["hello", first, "and you?"], 16)
    assert out == f"{first}\n{second}\n{first}\n"
    assert len(re.findall(r"^16 tokens, .* on this device", errors, re.MULTILINE)) == 3
    assert "> " not in errors
    assert "a new conversation" in errors


async def test_a_slash_can_begin_a_question() -> None:
    out, _ = piped("--max-tokens", "8", lines="//etc is what?\n")
    async with edge_engine(None) as engine:
        assert out == await answer_to(engine, ["/etc is what?"], 8) + "\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/nonsense\n", "/help"),
        ("/mode sideways\n", "standalone, collaborative, cloud-only, auto"),
        ("/mode auto\n", "--cloud"),
        ("/threshold much\n", "a number"),
        ("/threshold 0.5\n", "collaborative"),
        ("/target 0.9\n", "collaborative or auto"),
        ("/aim\n", "latency"),
        ("/new please\n", "alone"),
        (b"\xff\xfe\n", "UTF-8"),
        ("x" * 600, "shorten"),
    ],
)
def test_the_first_error_ends_a_pipe(lines: str | bytes, message: str) -> None:
    more = b"\nhello\n" if isinstance(lines, bytes) else "\nhello\n"
    out, errors = piped(lines=lines + more, expect=2)  # type: ignore[operator]
    assert message in errors
    assert out == ""


def test_a_cloud_that_is_not_there_has_its_own_exit_code() -> None:
    _, errors = piped("--cloud", "localhost:1", "--mode", "cloud-only", lines="x\n", expect=4)
    assert "/mode auto" in errors
    out, errors = piped("--cloud", "localhost:1", "--max-tokens", "4", lines="x\n")
    assert out.strip(), "auto mode goes on alone"
    # whoever notices first says it: the answer that asked, or the probe before it
    assert "going on without the cloud" in errors or "the cloud at localhost:1 does not" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "auto"], "--cloud"),
        (["--threshold", "0.5"], "collaborative"),
        (["--cloud", "localhost:1", "--threshold", "0.5", "--target-agreement", "0.9"], "not both"),
        (["--cloud", "localhost:1", "--target-agreement", "0.9", "--temperature", "1"], "greedy"),
        (["--cloud-ca", "ca.pem"], "--cloud"),
        (["--top-p", "0"], "top-p"),
    ],
)
def test_options_that_do_not_fit_are_told_at_once(arguments: list[str], message: str) -> None:
    assert message in piped(*arguments, lines="", expect=2)[1]


def test_a_conversation_that_no_longer_fits_forgets_its_oldest_turns() -> None:
    out, errors = piped("--max-tokens", "20", lines=f"{'word ' * 20}\n" * 6 + "/status\n")
    notices = re.findall(r"the oldest (\d+) turns? (?:is|are) forgotten", errors)
    assert notices, errors
    left = re.search(r"(\d+) turns, (\d+) of 512 tokens", errors)
    assert left is not None
    assert int(left[1]) == 6 - sum(map(int, notices))
    assert int(left[2]) < 512
    assert len(re.findall("^20 tokens", errors, re.MULTILINE)) == 6
    assert out


def test_a_seed_repeats_a_conversation() -> None:
    arguments = ["--max-tokens", "12", "--temperature", "1", "--seed"]
    first, again, other = (piped(*arguments, seed, lines="a\nb\n")[0] for seed in "112")
    assert first == again != other


async def test_a_person_sees_colours_figures_and_status() -> None:
    async with LocalCloud(tiny_bundle().folder, threads=1) as cloud:
        arguments = ["--cloud", cloud.address, "--max-tokens", "24", "--threshold", "0.05"]
        with PtyProcess([*COMMAND, *arguments]) as terminal:
            greeting = await terminal.sees(r"> $")
            assert "tiny-0, collaborative mode" in greeting
            assert "exit1, exit2, cloud" in greeting
            terminal.type("hello\r")
            shown = await terminal.sees(r"(?s)tokens, .*> $")
            assert re.search(r"tokens, [\d.]+/s · \d+% on this device", shown)
            assert re.search(r" · .*B up, .*B down", shown)
            terminal.type("/threshold 1\r")
            await terminal.sees(r"threshold 1\s+> $")
            before = len(terminal.raw)
            terminal.type("hello\r")
            shown = await terminal.sees(r"(?s) 0% on this device.*> $")
            assert re.search(r"round trip \d+ ms · .*B up, .*B down", shown)
            assert CLOUD_COLOUR.search(terminal.raw[before:])
            terminal.type("/mode standalone\r/threshold 0.5\r")
            await terminal.sees("(?s)error: .*collaborative.*> $")
            before = len(terminal.raw)
            terminal.type("hello\r")
            await terminal.sees(r"(?s)100% on this device.*> $")
            assert DEVICE_COLOURS.search(terminal.raw[before:])
            terminal.type("/status\r")
            shown = await terminal.sees(r"(?s)turns.*> $")
            assert "the cloud is there" in shown
            assert "3 turns" in shown
            terminal.type("/quit\r")
            assert terminal.end() == 0


def test_without_colours_none_are_shown() -> None:
    with PtyProcess([*COMMAND, "--max-tokens", "12"], NO_COLOR="1") as terminal:
        terminal.see(r"> $")
        terminal.type("hello\r")
        terminal.see(r"(?s)tokens, .*> $")
        terminal.type("/nonsense\r")
        terminal.see(r"(?s)error: .*> $")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert not ANY_COLOUR.search(terminal.raw)


def test_at_the_prompt_the_second_ctrl_c_in_a_row_leaves() -> None:
    with PtyProcess([*COMMAND, "--max-tokens", "4"]) as terminal:
        terminal.see(r"> $")
        terminal.type("half a quest")
        terminal.see(r"half a quest$")
        terminal.interrupt_prompt()
        terminal.see(r"(?s)leaves.*> $")
        terminal.type("/status\r")  # another line between: counting begins anew
        assert "0 turns" in terminal.see(r"(?s)turns.*> $")
        terminal.interrupt_prompt()
        terminal.see(r"(?s)leaves.*> $")
        terminal.interrupt_prompt()
        assert terminal.end() == 0


async def test_a_question_that_got_no_word_is_as_if_it_had_not_been_asked() -> None:
    async with (
        LocalCloud(tiny_bundle().folder, threads=1) as cloud,
        BreakableLink(cloud.address) as link,
    ):
        link.block()  # connections are made, and nothing comes
        endpoint = CloudEndpoint(link.address)
        controls = Controls(Mode.CLOUD_ONLY, max_tokens=8)
        async with EdgeService(
            tiny_bundle(), controls, precision="float32", threads=1, endpoint=endpoint
        ) as service:
            talk = Chat(service, ChatDisplay(), Conversation(), lambda: GREEDY)
            turn = talk.turn("first")
            running = asyncio.create_task(turn.run())
            await eventually(lambda: service.status().active == 1)
            turn.stop()
            await running
            assert (talk.conversation.turns, service.status().active) == (0, 0)
            assert service.status().cancellations == 1
            early = talk.turn("second")
            early.stop()
            await early.run()
            assert service.status().cancellations == 1, "it never began"
            service.set_controls(Controls(Mode.STANDALONE, max_tokens=8))
            await talk.turn("third").run()
            assert talk.conversation.turns == 1


async def test_a_stopped_answer_counts_as_far_as_it_went() -> None:
    question = long_question(100)  # now: it would hold up the relay
    async with (
        LocalCloud(tiny_bundle().folder, threads=1) as cloud,
        BreakableLink(cloud.address, delay=lambda: 0.02) as link,
    ):
        arguments = ["--cloud", link.address, "--mode", "cloud-only", "--max-tokens", "400"]
        with PtyProcess([*COMMAND, *arguments]) as terminal:
            await terminal.sees(r"> $")
            terminal.type(f"{question}\r")
            await terminal.sees(WORD, colours=True)
            terminal.type("\x03")
            shown = await terminal.sees(r"(?s)stopped.*> $")
            assert 0 < int(re.findall(r"(\d+) tokens, ", shown)[0]) < 400
            terminal.type("/status\r")
            await terminal.sees(r"(?s)\b1 turns.*> $")
            terminal.type("/new\r")
            await terminal.sees(r"(?s)a new conversation.*> $")
            terminal.type(f"{question}\r")
            await terminal.sees(WORD, colours=True)
            terminal.type("\x03")
            await terminal.sees(r"(?s)stopped.*> $")
            terminal.interrupt_prompt()  # the second in a row
            assert terminal.end() == 0


async def test_an_answer_survives_its_cloud_and_says_so_afterwards() -> None:
    question = long_question(120)  # now: it would hold up the relay
    async with (
        LocalCloud(tiny_bundle().folder, threads=1) as cloud,
        BreakableLink(cloud.address, delay=lambda: 0.02) as link,
    ):
        arguments = ["--cloud", link.address, "--aim", "quality", "--max-tokens", "120"]
        with PtyProcess([*COMMAND, *arguments]) as terminal:
            assert "auto mode" in await terminal.sees(r"> $")
            terminal.type(f"{question}\r")
            await terminal.sees(WORD, colours=True)
            link.block()
            shown = await terminal.sees(r"(?s)going on without the cloud.*> $")
            figures = shown.index(" without the cloud that would have been asked")
            assert figures < shown.index("going on without the cloud")
            terminal.type("/quit\r")
            assert terminal.end() == 0


def test_lines_can_be_edited_and_come_back_from_the_history(tmp_path: Path) -> None:
    history = tmp_path / "history"
    arguments = [*COMMAND, "--max-tokens", "4", "--history", str(history)]
    with PtyProcess(arguments) as terminal:
        terminal.see(r"> $")
        terminal.type("/sttus\x1b[D\x1b[D\x1b[Da\r")  # three to the left
        assert "no cloud" in terminal.see(r"(?s)0 turns.*> $")
        terminal.type("\x1b[A\r")
        assert "no cloud" in terminal.see(r"(?s)0 turns.*> $")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert history.read_text().splitlines() == ["/status"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with PtyProcess(arguments) as terminal:
        terminal.see(r"> $")
        terminal.type("\x1b[A\r")
        terminal.see(r"(?s)0 turns.*> $")
        terminal.type("/quit\r")
        assert terminal.end() == 0
