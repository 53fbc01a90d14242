"""Takes the pictures of docs/page.md: ``python -m tests.browser.pictures``, with the real model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from PIL import Image

from edge.generation import Mode
from shared.model_bundle import ModelBundle
from tests.browser.daemon import Daemon
from tests.browser.page import Page, percent, start_browser

QUESTIONS = ("Why is the sky blue?", "Explain that to a child, in one short sentence.")
PHONE = {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1200, "height": 780, "deviceScaleFactor": 1, "mobile": False}
COLOURS = 192  # keeps a picture small and its letters smooth


def main() -> None:
    """One conversation, seen in three ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    bundle = os.environ.get("TANDEM_TEST_BUNDLE", "build/test-bundle")
    parser.add_argument("--bundle", type=Path, default=Path(bundle))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    arguments = parser.parse_args()
    driver = start_browser()
    try:
        with Daemon(
            Mode.COLLABORATIVE,
            bundle=ModelBundle.load(arguments.bundle),
            precision="int8",
            target_agreement=0.9,
            max_tokens=90,
        ) as daemon:
            take(Page(driver, daemon.url), daemon, arguments.out)
    finally:
        driver.quit()


def take(page: Page, daemon: Daemon, folder: Path) -> None:
    """Write ``page-light.png``, ``page-dark.png`` and ``page-phone.png`` into ``folder``."""
    page.emulate("Emulation.setDeviceMetricsOverride", **DESKTOP)
    page.until(lambda: page.link() == "up")
    for question in QUESTIONS:
        page.asked(question)
    share = daemon.call(daemon.service.status).device_share or 0.0
    page.until(lambda: page.text("#share") == percent(share) and page.text("#rtt") != "–")
    for name, theme, screen in (
        ("light", "light", DESKTOP),
        ("dark", "dark", DESKTOP),
        ("phone", "light", PHONE),
    ):
        page.emulate("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": theme}
        page.emulate("Emulation.setEmulatedMedia", features=[scheme])
        page.script("document.activeElement.blur(); transcript.scrollTop = transcript.scrollHeight")
        path = folder / f"page-{name}.png"
        page.driver.save_screenshot(str(path))
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
