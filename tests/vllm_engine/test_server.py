"""`vlmcompress serve` over HTTP: requests at once, wrong ones, and such as are cut off."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner
from vllm_cases import ALL, PICTURES, SAMPLES, answers, loaded

from vlmcompress.cli import app

BUDGET = "25%"
STARTS = 900
"""Seconds that a server may take to start."""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """`vlmcompress serve` in processes of its own."""

    def __init__(self, log):
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        given = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
        given += ["--max-num-seqs", "8"]
        given += ["--host", "127.0.0.1", "--port", str(self.port), "--block-size", "32"]
        given += ["--served-model-name", "tiny", "--limit-mm-per-prompt", '{"image": 3}']
        given += ["--trust-request-mm-kwargs", "--enable-prompt-tokens-details"]
        command = [sys.executable, "-m", "vlmcompress", "serve", "tiny-llava"]
        command += ["--method", "divprune", "--budget", BUDGET, "--", *given]
        self.process = subprocess.Popen(
            command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment
        )

    def wait(self):
        until = time.monotonic() + STARTS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except OSError:
                time.sleep(1)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def post(self, body, timeout=120):
        """(status, answer) of a chat request: an object, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        address = f"{self.url}/v1/chat/completions"
        asked = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as found:
                return found.status, json.load(found)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def text(self, case, settings=None):
        status, found = self.post(chat(case, settings))
        assert status == 200, found
        return found["choices"][0]["message"]["content"].strip()


def chat(case, settings=None, **more):
    """The body of a chat request."""
    parts = []
    for name in case.files:
        data = base64.b64encode((SAMPLES / name).read_bytes()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    parts.append({"type": "text", "text": case.question})
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 12,
        "temperature": 0,
        "add_special_tokens": True,
    }
    if settings is not None:
        body["mm_processor_kwargs"] = {"vlmcompress": settings}
    return body | more


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server") / "log")
    try:
        yield made.wait()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def pruned():
    """What `vlmcompress ask` answers, and what it answers without pruning."""
    return texts("divprune", BUDGET)


def texts(method, budget=None):
    processor = loaded("tiny-llava")[1]
    found = answers("tiny-llava", tuple(ALL), method, budget)
    return [processor.decode(ids, skip_special_tokens=True).strip() for ids in found]


def test_curl_gets_what_ask_answers(server, tmp_path):
    case = PICTURES[1]
    (tmp_path / "body.json").write_text(json.dumps(chat(case)))
    address = f"{server.url}/v1/chat/completions"
    done = subprocess.run(
        ["curl", "-sS", "--json", f"@{tmp_path / 'body.json'}", address],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    picture = str(SAMPLES / case.files[0])
    asked = CliRunner().invoke(
        app,
        ["ask", "--image", picture, case.question, "--method", "divprune", "--budget", BUDGET],
    )
    assert asked.exit_code == 0, asked.output
    (line,) = [one for one in asked.stdout.splitlines() if one.startswith("answer")]
    assert line.split() == ["answer", *found["choices"][0]["message"]["content"].split()]
    assert found["usage"]["prompt_tokens"] == 47


def test_one_after_the_other_and_eight_at_once(server, pruned):
    assert [server.text(case) for case in ALL] == pruned
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(server.text, ALL)) == pruned


def test_requests_of_different_settings_at_once(server, pruned):
    full = texts(None)
    settings = [None, {"method": "full"}, {"budget": 144}] * len(ALL)
    right = [one for pair in zip(pruned, full, full, strict=True) for one in pair]
    cases = [case for case in ALL for _ in range(3)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(server.text, cases, settings[: len(cases)]))
    assert found == right
    assert pruned != full


def test_the_usage_tells_what_was_kept(server):
    used = [
        server.post(chat(PICTURES[0], settings))[1]["usage"]["prompt_tokens"]
        for settings in (None, {"budget": 72}, {"method": "full"})
    ]
    assert [one - used[0] for one in used] == [0, 36, 108]


def test_check_shows_both_answers(server):
    done = CliRunner().invoke(app, ["serve", "--check", server.url])
    assert done.exit_code == 0, done.output
    _, served, whole = done.stdout.splitlines()
    assert served.split()[:2] == ["as", "served"]
    assert int(whole.split()[2]) - int(served.split()[2]) == 108


def test_the_log_says_once_what_is_pruned(server):
    lines = [one for one in server.log.read_text().splitlines() if "prunes images of" in one]
    assert len(lines) == 1
    assert "LLaVA-1.5: divprune, budget 25%, positions keep" in lines[0]


def test_metrics_count_visual_tokens(server):
    server.text(PICTURES[2], {"method": "stride", "budget": 10})
    page = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    values = {
        line.split("{")[0].removeprefix("vlmcompress:visual_tokens_"): float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("vlmcompress:") and 'method="stride"' in line and "_total{" in line
    }
    assert values == {"given_total": 144, "kept_total": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fastv"}, "fastv cannot be served"),
        ({"budget": 10**400}, "more than there can be"),
        ({"positions": "renumber"}, "no setting 'positions'"),
    ],
)
def test_what_cannot_be_served_is_a_bad_request(server, pruned, settings, message):
    status, found = server.post(chat(PICTURES[0], settings))
    assert status == 400
    assert message in found
    assert server.text(ALL[0]) == pruned[0]


def hostile(generator):
    """A request that is wrong, or odd, in one of many ways."""
    case, pick = generator.choice(PICTURES), generator.choice
    odd = [
        *({"method": one} for one in ("fastv", "nope", "", "a" * 20000, "divprune(", "auto", "m3")),
        *({"method": f"divprune({one})"} for one in ("x=1", "**{}", "ratio=__import__('os')")),
        *({"budget": one} for one in (-1, 0, 1e308, 10**300, "x", [], {}, None, True, "0.4 flops")),
        *({"budget": one} for one in (1, 143, 144, 145, 10**11, "1%", "100%", "3 per frame")),
        *({"method": one} for one in ("mmtok", "visionzip", "holov", "pool", "text-only", "full")),
        {"positions": "renumber"},
        {"words": [1, 2]},
        [],
        "divprune",
        7,
    ]
    kind = generator.randrange(8)
    if kind < 4:
        return chat(case, pick(odd))
    if kind == 4:
        raw = json.dumps(chat(case)).encode()
        return pick([raw[: len(raw) // 2], b"", b"[]", b"\xff\xfe", b'{"model": "tiny"}'])
    if kind == 5:
        return chat(case, messages=[{"role": "user", "content": pick(["hello", "", " " * 5000])}])
    if kind == 6:
        body = chat(case, pick(odd))
        url = body["messages"][0]["content"][0]["image_url"]
        url["url"] = url["url"][: pick([25, 200, 3000])]
        return body
    body = chat(case, pick(odd))
    body["messages"][0]["content"] *= pick([2, 3, 9])
    return body


def test_two_hundred_hostile_requests_leave_the_server_answering(server, pruned):
    generator = random.Random(0)
    bodies = [hostile(generator) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = [status for status, _ in pool.map(server.post, bodies)]
    assert len(found) == 200
    assert set(found) <= {200, 400, 404, 415, 422, 500}
    assert found.count(200) > 20
    assert found.count(400) > 60
    assert server.process.poll() is None
    assert [server.text(case) for case in ALL[:6]] == pruned[:6]


def test_a_request_that_is_cut_off_leaves_the_server_answering(server, pruned):
    for wait in (0.0, 0.02, 0.1, 0.3):
        data = json.dumps(chat(ALL[3], max_tokens=800, ignore_eos=True, stream=True)).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            one.sendall(head.encode() + data)
            time.sleep(wait)
    assert [server.text(case) for case in ALL[:6]] == pruned[:6]
