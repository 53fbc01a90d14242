"""Controls on the page, and figures of the daemon."""

from __future__ import annotations

from collections.abc import Callable

from selenium.webdriver.common.keys import Keys

from edge.controller import Aim
from edge.controls import Controls
from edge.generation import Mode
from tests.browser.daemon import Daemon
from tests.browser.page import Page

OpenPage = Callable[[str], Page]


def test_the_mode_can_be_switched(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        page.asked("Before")
        assert {e.get_attribute("class") for e in page.all(".answer > span")} == {"cloud"}
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.until(lambda: page.text("#mode-now") == "standalone")
        page.asked("After")
        spans = page.all(".turn:last-child > .answer > span")
        assert "cloud" not in {e.get_attribute("class") for e in spans}
        assert not page.find("#level").is_displayed()
        for mode in (Mode.CLOUD_ONLY, Mode.AUTO, Mode.COLLABORATIVE):
            page.choose_mode(mode.value)
            page.until(lambda wanted=mode: daemon.service.controls.mode is wanted)  # type: ignore[misc]


def test_threshold_and_target_agreement_are_one_control(open_page: OpenPage) -> None:
    with Daemon() as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        assert not page.find("#level").is_displayed()
        page.choose("#basis", "threshold")
        page.until(lambda: daemon.service.controls.threshold == 0.8)
        page.until(lambda: page.find("#level").is_displayed())
        page.find("#level").send_keys(Keys.ARROW_RIGHT)
        page.until(lambda: daemon.service.controls.threshold == 0.81)
        page.until(lambda: page.text("#level-value") == "0.81")
        page.choose("#basis", "target_agreement")
        page.until(lambda: daemon.service.controls.target_agreement == 0.95)
        assert daemon.service.controls.threshold is None
        page.until(lambda: page.text("#level-value") == "95%")
        page.choose("#basis", "default")
        page.until(lambda: daemon.service.controls.target_agreement is None)
        page.until(lambda: not page.find("#level").is_displayed())


def test_what_cannot_be_is_explained_and_taken_back(open_page: OpenPage) -> None:
    with Daemon(target_agreement=0.96) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.text("#level-value") == "96%")
        page.find("#level").send_keys(Keys.END)
        page.until(lambda: "no threshold reaches" in page.text("#control-trouble").lower())
        page.until(lambda: page.text("#level-value") == "96%")
        assert daemon.service.controls.target_agreement == 0.96
        page.find("#level").send_keys(Keys.ARROW_LEFT)
        page.until(lambda: daemon.service.controls.target_agreement == 0.95)
        page.until(lambda: page.text("#control-trouble") == "")


def test_auto_mode_has_an_aim(open_page: OpenPage) -> None:
    with Daemon(Mode.AUTO) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.find("#aim").is_displayed())
        page.choose("#aim", "quality")
        page.until(lambda: daemon.service.controls.aim is Aim.QUALITY)
        box = page.find("#private")
        page.script("arguments[0].scrollIntoView()", box)
        box.click()
        page.until(lambda: daemon.service.controls.private)
        page.choose_mode("collaborative")
        page.until(lambda: not page.find("#aim").is_displayed())


def test_changes_made_elsewhere_are_shown(open_page: OpenPage) -> None:
    with Daemon() as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        daemon.call(daemon.service.set_controls, Controls(Mode.COLLABORATIVE, threshold=0.4))
        page.until(lambda: page.text("#level-value") == "0.40")
        assert page.find("#level").get_property("value") == "0.4"
        daemon.call(daemon.service.set_controls, Controls(Mode.CLOUD_ONLY))
        page.until(lambda: page.find("input[value=cloud-only]").is_selected())


def test_without_a_cloud_only_this_device_can_be_chosen(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "none")
        enabled = [e.get_attribute("value") for e in page.all("input[name=mode]:enabled")]
        assert enabled == ["standalone"]
        assert "--cloud" in page.text("#mode-about")


def test_figures_follow_the_answer_while_it_comes(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: page.text("#figures-of") == "this answer" and page.text("#speed") != "–")
        assert page.text("#share") == "0%"
        page.press(Keys.ESCAPE)
        page.until(lambda: page.text("#figures-of") == "last answers")
        page.until(lambda: page.text("#rtt") != "–")
        page.until(lambda: page.text("#plan") != "–")
