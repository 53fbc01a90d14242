"""The page in headless Chromium, in the words of who uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from tests.cloud_harness import WAIT_SECONDS

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
DESKTOP = (1280, 800)

T = TypeVar("T")


def start_browser() -> webdriver.Chrome:
    """Debian's Chromium without a screen."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root, in a container
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--window-size={DESKTOP[0]},{DESKTOP[1]}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, Service(CHROMEDRIVER))


def percent(share: float) -> str:
    """As the page rounds it."""
    return f"{int(100 * share + 0.5)}%"


class Page:
    """The page at ``url``, opened."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self._wait = WebDriverWait(
            driver, WAIT_SECONDS, 0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        driver.get(url)

    # ---- looking -----------------------------------------------------------------------------

    def until(self, holds: Callable[[], T]) -> T:
        """Wait until ``holds()`` is true, and return what it gave."""
        return self._wait.until(lambda _driver: holds())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """All text in the element, shown or not."""
        return str(self.find(selector).get_property("textContent"))

    def script(self, code: str, *args: Any) -> Any:
        """What ``code`` returns in the page."""
        return self.driver.execute_script(code, *args)

    def answers(self) -> list[str]:
        return [str(e.get_property("textContent")) for e in self.all(".turn > .answer")]

    def states(self) -> list[str]:
        """Of the turns: answering, done, stopped or broken."""
        return [str(turn.get_attribute("data-state")) for turn in self.all(".turn")]

    def link(self) -> str:
        """none, up, lost, unknown; gone where the daemon is, locked where it asks for a key."""
        return str(self.find("#link").get_attribute("data-link"))

    def focused(self) -> str:
        """Id or, of a radio button, value of the element that has the focus."""
        return str(
            self.script(
                "const e = document.activeElement; return e.type === 'radio' ? e.value : e.id"
            )
        )

    # ---- doing -------------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def press_with_shift(self, key: str) -> None:
        chain = ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(key)
        chain.key_up(Keys.SHIFT).perform()

    def ask(self, question: str) -> None:
        """Type and send."""
        self.find("#question").send_keys(question, Keys.ENTER)

    def asked(self, question: str) -> str:
        """Ask, wait for the end and return the answer."""
        before = len(self.all(".turn"))
        self.ask(question)
        self.until(lambda: self.states()[before:] == ["done"])
        return self.answers()[-1]

    def choose_mode(self, mode: str) -> None:
        self.find(f"input[value={mode}] + span").click()

    def choose(self, selector: str, value: str) -> None:
        """An option of a list."""
        Select(self.find(selector)).select_by_value(value)

    def emulate(self, command: str, **parameters: Any) -> None:
        """A command of Chromium's DevTools, such as a preference or a screen."""
        self.driver.execute_cdp_cmd(command, parameters)

    def complaints(self) -> list[str]:
        """Errors that the browser's console has (scripts, and what the policy forbade), but for
        requests that were refused or failed: those the page itself speaks of."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")  # type: ignore[no-untyped-call]
            if entry["level"] == "SEVERE" and entry["source"] != "network"
        ]
