"""Asking on the page: streams, origins, several turns, stopping, reloading."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from edge.generation import Mode
from edge.service import AnswerRecord
from tests.browser.daemon import Daemon
from tests.browser.page import Page, percent

OpenPage = Callable[[str], Page]


def watched(page: Page) -> None:
    """Remember in the page each text that its answers and its announcements had."""
    page.script(
        """
        window.seen = []; window.said = [];
        new MutationObserver(() => seen.push(
          [...document.querySelectorAll(".turn > .answer")].at(-1)?.textContent ?? ""
        )).observe(transcript, {childList: true, subtree: true, characterData: true});
        new MutationObserver(() => window.said.push(
          document.querySelector("#said").textContent
        )).observe(document.querySelector("#said"), {childList: true});
        """
    )


def test_an_answer_comes_word_by_word_and_is_what_the_api_gives(open_page: OpenPage) -> None:
    with Daemon() as daemon:
        page = open_page(daemon.url)
        watched(page)
        answer = page.asked("Why?")
        body = {"model": "tiny-0", "messages": [{"role": "user", "content": "Why?"}]}
        response = httpx.post(f"{daemon.url}v1/chat/completions", json=body, timeout=60)
    assert answer == response.json()["choices"][0]["message"]["content"]
    seen = page.script("return window.seen")
    assert len({text for text in seen if text}) > 2  # not all at once
    assert all(answer.startswith(text) for text in seen)


def test_words_show_where_they_come_from(open_page: OpenPage) -> None:
    with Daemon(threshold=0.2) as daemon:
        page = open_page(daemon.url)
        page.asked("Tell me of rivers")
        record = daemon.call(daemon.service.status)
        shown = {str(e.get_attribute("class")) for e in page.all(".answer > span")}
        assert shown == {origin for origin, count in record.origins.items() if count}
        assert len(shown) > 1
        summary = page.text(".summary")
        assert f"{record.tokens} tokens" in summary
        for origin, count in record.origins.items():
            name = origin.replace("exit", "exit ")
            assert f"{name} {percent(count / record.tokens)}" in summary
        page.until(lambda: page.text("#figures-of") == "last answers")
        page.until(lambda: page.text("#speed") != "–")
        share = record.device_share
        assert share is not None
        page.until(lambda: page.text("#share") == percent(share))
        assert page.text("#up").endswith("kB")


def test_looks_differ_without_colour_and_can_be_put_away(open_page: OpenPage) -> None:
    looks = """
        const shown = ["exit1", "exit2", "cloud", "exit1 alone", "exit2 alone"].map((name) => {
          const span = document.createElement("span");
          span.className = name;
          document.querySelector(".answer").append(span);
          const style = getComputedStyle(span);
          const look = [style.textDecorationLine, style.textDecorationStyle,
                        style.webkitTextStrokeWidth, style.fontWeight].join();
          const color = style.color;
          span.remove();
          return [look, color];
        });
        return shown;
    """
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        page.asked("Well?")
        shown = page.script(looks)
        assert len({look for look, _ in shown}) == 5
        assert len({color for _, color in shown}) == 3
        box = page.find("#show-origins")
        page.script("arguments[0].scrollIntoView()", box)
        box.click()
        assert len({(look, color) for look, color in page.script(looks)}) == 1
        page.driver.refresh()
        assert not page.find("#show-origins").is_selected()


def test_a_second_question_carries_the_conversation(open_page: OpenPage) -> None:
    with Daemon(max_tokens=12) as daemon:
        asked: list[AnswerRecord] = []
        daemon.call(daemon.service.observe, asked.append)
        page = open_page(daemon.url)
        first = page.asked("One?")
        second = page.asked("Two?")
        prompt = daemon.service.engine.decode(asked[1].request.prompt_ids)
        assert prompt == f"user\nOne?\nassistant\n{first}\nuser\nTwo?\nassistant\n"
        page.find("#new").click()
        assert page.all(".turn") == []
        page.asked("Three?")
        prompt = daemon.service.engine.decode(asked[2].request.prompt_ids)
    assert prompt == "user\nThree?\nassistant\n"
    assert second


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_here_and_on_the_daemon(open_page: OpenPage, how: str) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: len(page.answers()[0]) > 3)
        if how == "button":
            page.find("#stop").click()
        else:
            page.press(Keys.ESCAPE)
        page.until(lambda: page.states() == ["stopped"])
        page.until(lambda: daemon.call(daemon.service.status).cancellations == 1)
        assert "Stopped." in page.text(".note")
        assert len(page.answers()[0]) > 3
        assert page.find("#send").is_displayed()
        assert not page.find("#stop").is_displayed()
        daemon.piece_seconds = 0.0
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.find(".note button").click()  # try again
        page.until(lambda: page.states() == ["done"])


def test_nothing_is_sent_twice_while_an_answer_comes(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("First")
        page.until(lambda: page.states() == ["answering"])
        page.ask("Second")
        assert page.find("#question").get_property("value") == "Second"  # kept for later
        assert len(page.all(".turn")) == 1
        page.press(Keys.ESCAPE)
        page.until(lambda: page.states() == ["stopped"])
        page.press(Keys.ENTER)
        page.until(lambda: page.states() == ["stopped", "answering"])


def test_new_conversation_leaves_the_answer_that_is_being_made(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: page.answers() != [""])
        page.find("#new").click()
        page.until(lambda: daemon.call(daemon.service.status).cancellations == 1)
        assert page.all(".turn") == []
        daemon.piece_seconds = 0.0
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.asked("Another")
        assert len(page.all(".turn")) == 1


def test_markup_stays_text(open_page: OpenPage) -> None:
    markup = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        page.asked(markup)
        assert page.text(".question") == markup
        # as if a model had answered so, by the way that answers are kept
        page.script(
            """
            const turns = JSON.parse(sessionStorage["tandem.conversation"]);
            turns[0].spans = [{text: arguments[0], origin: "cloud", alone: false}];
            turns[0].note = arguments[0];
            window.addEventListener("pagehide", (event) => {
              event.stopImmediatePropagation();
            }, true);
            sessionStorage["tandem.conversation"] = JSON.stringify(turns);
            Storage.prototype.setItem = () => {};
            """,
            markup,
        )
        page.driver.refresh()
        page.until(lambda: page.answers() == [markup])
        assert page.text(".note") == markup
        assert page.all(".transcript img, .transcript script, .transcript b") == []
        assert page.script("return window.hacked === undefined")


def test_the_conversation_survives_a_reload(open_page: OpenPage) -> None:
    with Daemon(threshold=0.2, max_tokens=20) as daemon:
        page = open_page(daemon.url)
        answer = page.asked("One?")
        spans = [e.get_attribute("class") for e in page.all(".answer > span")]
        summary = page.text(".summary")
        page.driver.refresh()
        page.until(lambda: page.answers() == [answer])
        assert [e.get_attribute("class") for e in page.all(".answer > span")] == spans
        assert page.text(".summary") == summary
        page.until(lambda: page.link() == "up")
        page.asked("Two?")
        assert page.answers()[0] == answer


def test_a_reload_in_the_middle_marks_the_answer(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: len(page.answers()[0]) > 3)
        page.driver.refresh()
        page.until(lambda: page.states() == ["broken"])
        assert len(page.answers()[0]) > 3
        assert "left while this answer was made" in page.text(".note")
        page.until(lambda: daemon.call(daemon.service.status).cancellations == 1)


def test_a_screen_reader_hears_the_beginning_and_the_end(open_page: OpenPage) -> None:
    with Daemon() as daemon:
        page = open_page(daemon.url)
        watched(page)
        answer = page.asked("Why?")
        page.until(lambda: len(page.script("return window.said")) == 2)
        said = page.script("return window.said")
    assert said[0] == "Answering."
    assert answer in said[1]
    live = page.all("[aria-live], [role=status], [role=alert], [role=log]")
    assert all(not element.find_elements("css selector", ".answer") for element in live)
