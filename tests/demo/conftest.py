"""The page served by a process of its own, and a headless Chromium that looks at it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vlmcompress

ROOT = Path(vlmcompress.__file__).parents[1]
SHOTS = ROOT / "build" / "demo-screenshots"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT = 120
"""Seconds that the page may take for anything."""


@pytest.fixture(scope="session")
def address():
    """Where the command serves tiny-qwen."""
    command = [sys.executable, "-m", "vlmcompress", "demo", "--port", "0", "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as server:
        try:
            line = server.stdout.readline()
            yield re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A browser that keeps what it was told on the console, and whom it asked."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


class Visitor:
    """What a visitor does and sees."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, query="", size=(1400, 1200)):
        from selenium.webdriver.support.ui import WebDriverWait

        self.wait = WebDriverWait(self.browser, WAIT)
        self.size(*size)
        self.browser.get_log("browser")
        self.browser.get_log("performance")
        self.browser.get(self.address + query)
        self.until(lambda: self.find("#preview img"))
        return self

    def size(self, width, height):
        """Of the page itself: windows are never as narrow as a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        self.until(lambda: self.find(selector))
        return self.find(selector)[0]

    def until(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException

        def holds(_):
            try:
                return condition()
            except StaleElementReferenceException:
                return False

        return self.wait.until(holds)

    def status(self):
        return self.one("#status").text

    def ask(self):
        """Press the button; the status says how it went."""
        self.one("#ask").click()
        self.answered()

    def answered(self):
        self.until(lambda: self.status().startswith(("What changed", "Error")))
        self.until(lambda: not self.find("#status .progress-text"))

    def panels(self):
        """Heading and text of each panel that is shown."""
        shown = [one for one in self.find("[id^=panel-]") if one.is_displayed()]
        return [one.text for one in shown]

    def pictures(self):
        return [one.get_attribute("src") for one in self.find("#panels img") if one.is_displayed()]

    def upload(self, file):
        self.one("#upload input[type=file]").send_keys(str(file))

    def shot(self, name):
        """Keep a picture of the whole page for people to look at."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.until(lambda: all(self.complete(one) for one in self.find("img")))
        script = "return [document.documentElement.scrollHeight, window.innerWidth]"
        height, width = self.browser.execute_script(script)
        self.size(width, max(600, height))
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def complete(self, image):
        script = "return arguments[0].complete && arguments[0].naturalWidth > 0"
        return not image.is_displayed() or self.browser.execute_script(script, image)

    def complaints(self):
        """What the browser says on its console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def hosts(self):
        """Whom the page asked for something."""
        messages = [
            json.loads(e["message"])["message"] for e in self.browser.get_log("performance")
        ]
        asked = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        urls = [message["params"]["request"]["url"] for message in asked]
        return {url.split("/")[2] for url in urls if url.startswith("http")}


@pytest.fixture
def visitor(chromium, address):
    return Visitor(chromium, address)


@pytest.fixture(scope="session")
def shots():
    """The folder of screenshots."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    return SHOTS
