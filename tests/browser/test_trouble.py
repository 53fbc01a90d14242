"""Links that go and come, daemons that do, keys, queues: the page says what to do, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

import httpx
from selenium.webdriver.common.keys import Keys

from edge.controller import Aim
from edge.controls import Controls
from edge.generation import Mode
from tests.browser.daemon import Daemon
from tests.browser.page import Page
from tests.cloud_harness import WAIT_SECONDS

OpenPage = Callable[[str], Page]


def test_auto_mode_goes_on_while_the_link_is_lost(open_page: OpenPage) -> None:
    with Daemon(Mode.AUTO, aim=Aim.QUALITY) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        page.asked("With the cloud")
        daemon.call(daemon.link.block)
        page.until(lambda: page.link() == "lost")
        assert page.text("#link-now") == "lost: going on alone"
        page.asked("Without it")
        spans = page.all(".turn:last-child > .answer > span")
        looks = {str(e.get_attribute("class")) for e in spans}
        assert looks
        assert "cloud" not in looks
        assert any("alone" in look for look in looks)
        assert "without the cloud that would have been asked" in page.text(
            ".turn:last-child .summary"
        )
        daemon.call(daemon.link.unblock)
        daemon.call(daemon.link.cut)
        page.until(lambda: page.link() == "up")
        page.asked("With it again")


def test_a_link_cut_in_the_middle_of_an_auto_answer(open_page: OpenPage) -> None:
    with Daemon(
        Mode.AUTO, aim=Aim.QUALITY, private=True, piece_seconds=0.05, max_tokens=200
    ) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        page.ask("A long story")
        page.until(lambda: len(page.answers()[0]) > 3)
        daemon.call(daemon.link.block)
        page.until(lambda: page.states() == ["done"])
        page.until(lambda: page.link() == "lost")
        assert any("alone" in str(e.get_attribute("class")) for e in page.all(".answer > span"))


def test_a_daemon_that_goes_away_is_found_again(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: len(page.answers()[0]) > 3)
        daemon.go_away()
        page.until(lambda: page.states() == ["broken"])
        assert len(page.answers()[0]) > 3
        assert "The answer broke off." in page.text(".note")
        page.until(lambda: page.link() == "gone")
        page.until(lambda: page.find("#banner").is_displayed())
        assert "tandem edge serve" in page.text("#banner")
        page.ask("Are you there?")
        page.until(lambda: page.states() == ["broken", "broken"])
        assert "tandem edge serve" in page.text(".turn:last-child .note")
        daemon.piece_seconds = 0.0
        daemon.come_back()
        page.until(lambda: page.link() == "up")
        assert not page.find("#banner").is_displayed()
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.find(".turn:last-child .note button").click()
        page.until(lambda: page.states() == ["broken", "done"])


def test_the_api_key_is_asked_for_and_kept_in_the_tab(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False, api_key="right") as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.until(lambda: page.link() == "locked")
        page.press("wrong", Keys.ENTER)
        page.until(lambda: "refused" in page.text("#key-trouble"))
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.press(Keys.ESCAPE)
        assert not page.find("#key-dialog").is_displayed()
        assert "API key" in page.text("#banner-text")
        page.ask("Hello?")
        page.until(lambda: page.states() == ["broken"])
        assert "API key" in page.text(".note")
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.press("right", Keys.ENTER)
        page.until(lambda: page.link() == "none")
        assert not page.find("#banner").is_displayed()
        page.find(".note button").click()
        page.until(lambda: page.states() == ["done"])
        page.driver.refresh()
        page.until(lambda: page.link() == "none")
        assert not page.find("#key-dialog").is_displayed()
        assert page.script("return localStorage.length") == 0


def test_a_full_queue_is_explained(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400, queue_limit=0) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        body = {
            "model": "tiny-0",
            "messages": [{"role": "user", "content": "Another's"}],
            "stream": True,
        }
        begun, enough = Event(), Event()

        def other() -> None:
            url = f"{daemon.url}v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=WAIT_SECONDS) as response:
                lines = response.iter_lines()  # once it is let go of, the stream is closed
                next(lines)
                begun.set()
                enough.wait(WAIT_SECONDS)

        thread = Thread(target=other)
        thread.start()
        try:
            assert begun.wait(WAIT_SECONDS)
            page.ask("Mine")
            page.until(lambda: page.states() == ["broken"])
            assert "busy" in page.text(".note")
            assert "try again in a moment" in page.text(".note")
        finally:
            enough.set()
            thread.join()
        daemon.piece_seconds = 0.0
        page.until(lambda: daemon.call(daemon.service.status).active == 0)
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.find(".note button").click()
        page.until(lambda: page.states() == ["done"])


def test_a_conversation_that_is_too_long_says_so(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        page.ask("long " * 120)
        page.until(lambda: page.states() == ["broken"])
        assert "Begin a new one" in page.text(".note")


def test_a_page_that_nobody_sees_lets_go_of_the_daemon(open_page: OpenPage) -> None:
    with Daemon() as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        seen = page.driver.current_window_handle
        page.driver.switch_to.new_window("tab")
        page.until(lambda: not daemon.call(lambda: daemon.service._watchers))
        daemon.call(daemon.service.set_controls, Controls(Mode.CLOUD_ONLY))
        page.driver.switch_to.window(seen)
        page.until(lambda: page.text("#mode-now") == "cloud-only")


def test_a_daemon_that_drains_says_so(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "none")
        daemon.run(daemon.service.drain())
        page.until(lambda: "shutting down" in page.text("#banner-text"))
        page.ask("Still there?")
        page.until(lambda: page.states() == ["broken"])
        assert "shutting down" in page.text(".note")
