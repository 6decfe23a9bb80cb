"""A real browser without a window, for pages: what it asked of the network, and what it complained of.

Chromium and its driver are the system's (Debian: chromium, chromium-driver). Where one is missing, a test
that needs it is skipped.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """A page in a window of ``width`` pixels."""

    def __init__(self, driver: Any, width: int, height: int) -> None:
        self.driver = driver
        self._requested: list[str] = []
        self.resize(width, height)

    def resize(self, width: int, height: int = 900) -> None:
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def open(self, page: Path | str) -> None:
        self.driver.get(page.as_uri() if isinstance(page, Path) else page)

    def emulate(self, *, media: str = "", scheme: str = "light") -> None:
        """``media``: print or screen; ``scheme``: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", media=media, features=features)

    def ask(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        return self.driver.execute_script(f"return {script}")

    def complaints(self) -> list[str]:
        """Lines of the console since the last call."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Every address that was asked for so far."""
        for line in self.driver.get_log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        return self._requested

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self._command("Page.printToPDF")["data"])

    def named(self, role: str) -> list[str]:
        """The names by which a screen reader knows everything of a role."""
        nodes = self._command("Accessibility.getFullAXTree")["nodes"]
        found = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") == role]
        return [str(node.get("name", {}).get("value", "")) for node in found]

    def _command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)


@contextmanager
def browser(width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """A fresh browser; skips the test where there is none."""
    program = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    server = shutil.which("chromedriver")
    if program is None or server is None:
        pytest.skip("no browser: chromium and chromium-driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no browser: selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--disable-extensions",
    ):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # for root Chromium has none
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver, width, height)
    finally:
        driver.quit()
