"""The page in a real browser, and what its server gives to whom.

It needs gradio, selenium, chromium and chromedriver: `make test-demo`.
"""

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import vlmcompress
from vlmcompress.demo.media import MAX_UPLOAD, SAMPLES

pytest.importorskip("gradio", reason="gradio is not installed: make test-demo")

pytestmark = pytest.mark.slow
QUERY = "?sample=street.png&question=what+color+is+the+circle+%3F&methods=divprune,fastv&budget=50"


def test_it_loads_from_nowhere_else_and_asks(visitor):
    visitor.open(QUERY)
    visitor.ask()
    shown = visitor.panels()
    assert [text.splitlines()[0] for text in shown] == ["full", "divprune at 50%", "fastv at 50%"]
    model, processor = vlmcompress.load("tiny-qwen", dtype="float32")
    wanted = vlmcompress.compare(
        model,
        processor,
        SAMPLES / "street.png",
        "what color is the circle ?",
        ["divprune", "fastv"],
        "50%",
    )
    for text, answer in zip(shown, wanted, strict=True):
        assert answer.answer in text
        assert f"{answer.after} of {answer.before} tokens" in text
        assert "prefill" in text
    assert wanted.changed() in visitor.status()
    visitor.shot("desktop")
    assert visitor.complaints() == []
    assert visitor.hosts() == {visitor.address.split("/")[2]}


def test_the_address_has_the_settings_and_shows_the_same_again(visitor):
    visitor.open(QUERY)
    question = visitor.one("#question textarea, #question input")
    question.clear()
    question.send_keys("how many stars are there ?")
    visitor.ask()
    first, address = visitor.panels(), visitor.browser.current_url
    assert "question=how+many+stars+are+there" in address
    assert "methods=divprune%2Cfastv" in address
    visitor.open(address.removeprefix(visitor.address))
    visitor.ask()
    without_times = [re.sub(r"\d+\.\d\b", "", text) for text in visitor.panels()]
    assert without_times == [re.sub(r"\d+\.\d\b", "", text) for text in first]


def test_a_layer_of_the_decoder_is_shown(visitor):
    visitor.open(QUERY)
    visitor.ask()
    before = visitor.pictures()
    slider = visitor.one("#layer input[type=range]")
    slider.send_keys("\ue010")  # the End key
    visitor.until(lambda: len(visitor.pictures()) == 3 and visitor.pictures() != before)
    visitor.shot("layer")


def test_a_clip(visitor):
    visitor.open("?sample=runway.mp4&methods=divprune,pyramiddrop&budget=50")
    visitor.ask()
    assert [text.splitlines()[0] for text in visitor.panels()] == [
        *("full", "divprune at 50%", "pyramiddrop at 50%")
    ]
    assert "right" in visitor.panels()[0]
    visitor.shot("clip")
    assert visitor.complaints() == []


@pytest.mark.parametrize("name", ["garden.png", "elevator.mp4"])
def test_an_upload_takes_the_place_of_the_sample(visitor, name):
    visitor.open(QUERY)
    before = visitor.one("#preview img").get_attribute("src")
    visitor.upload(SAMPLES / name)
    visitor.until(lambda: visitor.one("#preview img").get_attribute("src") != before)
    visitor.ask()
    model, processor = vlmcompress.load("tiny-qwen", dtype="float32")
    frames = 16 if name.endswith("mp4") else None
    wanted = vlmcompress.ask(
        model,
        processor,
        SAMPLES / name,
        "what color is the circle ?",
        "divprune",
        "50%",
        frames=frames,
    )
    assert f"{wanted.after} of {wanted.before} tokens" in visitor.panels()[1]


def test_a_wrong_file_is_told_and_the_page_goes_on(visitor, tmp_path):
    visitor.open(QUERY)
    (tmp_path / "wrong.png").write_text("no picture")
    visitor.upload(tmp_path / "wrong.png")
    visitor.until(lambda: "Error" in visitor.status())
    assert "wrong.png' is not an image" in visitor.status()
    assert "/tmp" not in visitor.status()
    visitor.ask()
    assert visitor.panels() == []
    visitor.shot("error")
    visitor.open(QUERY)
    visitor.ask()
    assert len(visitor.panels()) == 3


def test_a_budget_that_cannot_be_met_is_told(visitor):
    visitor.open("?sample=street.png&methods=divprune,fastv&budget=5")
    visitor.ask()
    assert "fastv at 5% is refused" in visitor.status()
    assert len(visitor.panels()) == 2


def test_all_methods_on_one_picture(visitor):
    visitor.open(QUERY)
    visitor.one("#all").click()
    visitor.until(lambda: "methods meet 50%" in visitor.status())
    count = int(visitor.status().split()[0])
    assert count > 20
    visitor.until(lambda: len(visitor.find("#gallery .thumbnail-item")) == count)
    visitor.shot("gallery")
    assert visitor.complaints() == []


def test_it_is_used_by_keyboard_alone(visitor):
    visitor.open(QUERY)
    seen = []
    for _ in range(40):
        visitor.browser.switch_to.active_element.send_keys("\ue004")  # Tab
        active = visitor.browser.switch_to.active_element
        script = "return arguments[0].closest('[id]:not([id^=component]):not([id^=range])')?.id"
        seen.append(visitor.browser.execute_script(script, active))
        if seen[-1] == "ask":
            break
    order = list(dict.fromkeys(name for name in seen if name))
    places = [order.index(name) for name in ("sample", "question", "methods", "budget", "ask")]
    assert places == sorted(places)
    visitor.browser.switch_to.active_element.send_keys("\ue007")  # Enter
    visitor.answered()
    assert len(visitor.panels()) == 3


def test_a_narrow_screen_scrolls_down_only(visitor):
    visitor.open(QUERY, size=(390, 844))
    visitor.ask()
    script = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wide, window = visitor.browser.execute_script(script)
    assert window == 390
    assert wide <= window
    left = [one.rect["x"] for one in visitor.find("[id^=panel-]") if one.is_displayed()]
    assert max(left) - min(left) < 20  # one below the other
    visitor.shot("narrow")


def test_dark(visitor):
    visitor.open(QUERY + "&__theme=dark")
    visitor.ask()
    visitor.shot("dark")
    script = "return getComputedStyle(document.querySelector('.gradio-container')).backgroundColor"
    red, green, blue = re.findall(r"\d+", visitor.browser.execute_script(script))[:3]
    assert max(map(int, (red, green, blue))) < 60


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_the_server_can_be_read(address, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    assert get(address) == 200
    for path in (secret, "/etc/passwd", "pyproject.toml", "README.md", "../../../etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "file/"):
            assert get(f"{address}{route}{path}") in (403, 404), path


def test_no_file_of_the_server_can_be_asked_about(address, tmp_path):
    """Whoever speaks to the server without the page cannot name a file as uploaded, nor an address
    to be fetched."""
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    with urllib.request.urlopen(f"{address}config", timeout=30) as answer:
        config = json.load(answer)
    upload = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "upload")
    looks = [d["id"] for d in config["dependencies"] if [upload, "change"] in d["targets"]]
    for path in (str(secret), "/etc/passwd", f"{address}config"):
        given = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        said = call(address, looks[0], [given, None])
        assert said["success"] is False, said
        assert "secret" not in json.dumps(said["output"].get("data", ""))


def call(address, number, data):
    """The answer of one function of the page."""
    body = {"data": data, "fn_index": number, "session_hash": "abcdef"}
    headers = {"Content-Type": "application/json"}
    join = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), headers
    )
    urllib.request.urlopen(join, timeout=30).close()
    url = f"{address}gradio_api/queue/data?session_hash=abcdef"
    with urllib.request.urlopen(url, timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message
    raise AssertionError("the server said nothing")


def test_a_large_upload_is_refused(address):
    boundary = "x" * 16
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + b"x" * (MAX_UPLOAD + 1) + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}gradio_api/upload",
        body,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert get(request) == 413
