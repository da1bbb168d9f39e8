"""A Chromium without a screen, driven by WebDriver."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.require import SPEEDSCOPE, chromium

PATIENCE = 90.0

T = TypeVar("T")


class Browser:
    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # the same page with another fragment is not loaded again
        self.driver.get(url)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """What ``condition`` gives, once that is true."""
        return WebDriverWait(self.driver, PATIENCE, 0.1).until(lambda _: condition(), what)

    def problems(self) -> list[str]:
        """What went wrong in the page, by its console."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    # -- speedscope

    def functions_by_speedscope(self, profile: Path, scratch: Path) -> dict[str, tuple[str, str]]:
        """What speedscope's table says of the file's first profile: of each function
        that is in sight, its total and its own weight, as speedscope writes them."""
        script = scratch / "load.js"
        content = base64.b64encode(profile.read_bytes()).decode()
        script.write_text(
            f"speedscope.loadFileFromBase64({json.dumps(profile.name)}, {json.dumps(content)})"
        )
        page = SPEEDSCOPE / "index.html"
        self.open(f"{page.as_uri()}#view=sandwich&localProfilePath={script}")
        self.wait(lambda: self.all("td"), f"speedscope shows no table of {profile.name}")
        found = {}
        for row in self.all("tr"):
            cells = [cell.text.split(" ")[0] for cell in row.find_elements(By.TAG_NAME, "td")[:2]]
            if cells:
                name = row.find_elements(By.TAG_NAME, "td")[2].text
                found[name] = (cells[0], cells[1])
        return found


@contextmanager
def started() -> Iterator[Browser]:
    options = ChromeOptions()
    options.binary_location = chromium() or ""
    for argument in (
        "--headless",
        "--no-sandbox",  # root has none
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1300,800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    try:
        driver.set_page_load_timeout(PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()
