"""report.html of `eval` in a real browser: three widths, sorting, dark mode."""

import json
from pathlib import Path

import pytest

import vlmcompress
from vlmcompress.eval.report.write import render

pytestmark = pytest.mark.slow
RESULTS = Path(vlmcompress.__file__).parents[1] / "docs" / "eval" / "tiny-llava" / "results.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("report")
    render(made, json.loads(RESULTS.read_text()))
    return made


@pytest.fixture
def page(chromium, folder):
    chromium.get_log("browser")
    chromium.get((folder / "report.html").as_uri())
    return chromium


def set_size(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_no_width_scrolls_sideways(page, width, shots):
    set_size(page, width)
    page.save_screenshot(str(shots / f"report-{width}.png"))
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.get_log("browser") == []


def test_a_heading_sorts_its_table(page):
    set_size(page, 1400)
    column = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].textContent)"
    table = page.find_element("css selector", "#costs-1 ~ .wide table")
    button = table.find_elements("css selector", "th button")[1]
    before = page.execute_script(column, table, 1)
    button.click()
    down = page.execute_script(column, table, 1)
    numbers = [float(text.split()[0].rstrip("%")) for text in down if text[0].isdigit()]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) > 5
    assert sorted(down) == sorted(before)
    assert all(not text[0].isdigit() for text in down[len(numbers) :])
    button.send_keys("\ue007")  # Enter
    up = [text for text in page.execute_script(column, table, 1) if text[0].isdigit()]
    assert [float(text.split()[0].rstrip("%")) for text in up] == numbers[::-1]


def test_plots_follow_dark_mode(page, shots):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    set_size(page, 1100)
    plot = page.find_element("css selector", "img.plot")
    assert "invert" in plot.value_of_css_property("filter")
    plot.location_once_scrolled_into_view  # noqa: B018  (it scrolls)
    page.save_screenshot(str(shots / "report-dark.png"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert plot.value_of_css_property("filter") == "none"
