"""`vlmcompress serve`, without vLLM."""

import importlib.util
import json
import os
import shlex
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vlmcompress.models.names import resolve

SERVE = ("serve", "tiny-llava", "--method", "divprune", "--budget", "25%")


def test_print_shows_the_command(cli):
    done = cli(*SERVE, "--print", "--", "--port", "8931")
    assert done.exit_code == 0, done.output
    command = shlex.split(done.stdout)
    assert command[:4] == ["vllm", "serve", resolve("tiny-llava"), "--hf-overrides"]
    assert json.loads(command[4]) == {
        "architectures": ["VlmcompressLlavaForConditionalGeneration"],
        "vlmcompress": {"method": "divprune", "budget": "25%", "positions": "keep"},
    }
    assert command[5:] == ["--port", "8931"]


def test_vllm_takes_the_place_of_the_process(cli, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execv", lambda *command: ran.append(command))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert cli(*SERVE, "--", "--port", "8931").exit_code == 0
    ((program, command),) = ran
    assert program == sys.executable
    assert command[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert command[-2:] == ["--port", "8931"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_says_how_to_get_it(cli):
    done = cli(*SERVE)
    assert done.exit_code == 2
    assert done.stderr == "error: vLLM is not installed: pip install 'vlmcompress[vllm]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve",), "give a model and --method"),
        (("serve", "tiny-llava"), "give a model and --method"),
        (("serve", "tiny-llava", "-m", "fastv", "-b", "25%"), "fastv cannot be served"),
        (("serve", "tiny-llava", "-m", "fastv", "-b", "0.5 flops"), "fastv cannot be served"),
        (("serve", "tiny-llava", "-m", "nope"), "unknown method 'nope'"),
        (("serve", "tiny-llava", "-m", "divprune", "-b", "0"), "must be above zero"),
        (("serve", "nope", "-m", "divprune"), "nope"),
        (("serve", "tiny-llava", "--check", "http://127.0.0.1:9"), "give it no model"),
        (("serve", "--check", "http://127.0.0.1:9"), "no answer from http://127.0.0.1:9"),
        (("serve", "--check", "file:///etc/passwd"), "no address of a server"),
        ((*SERVE, "--positions", "sideways"), "positions='sideways'"),
        (("serve", "--check", "http://127.0.0.1:9", "-b", "25%"), "no model, settings or arg"),
        (("serve", "--check", "http://127.0.0.1:x"), "no answer from http://127.0.0.1:x"),
        (("serve", "--check", "http://[::1"), "no answer from http://[::1"),
        (("serve", "tiny-llava", "-m", "divprune", "-b", "120 ms"), "a server has no time"),
        (("serve", "tiny-llava", "-m", "text-only"), "keeps no token"),
        (("serve", "tiny-llava", "-m", "token-correlation"), "give a budget such as 64"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(cli, arguments, message):
    done = cli(*arguments, "--print")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_share_of_the_flops_is_settled_when_the_server_starts(cli):
    done = cli("serve", "tiny-llava", "-m", "divprune", "-b", "0.9 flops", "--print")
    assert done.exit_code == 0, done.output
    overrides = json.loads(shlex.split(done.stdout)[4])
    assert overrides["vlmcompress"]["budget"] == "0.9 flops"


def test_a_folder_without_a_configuration_is_named(cli, tmp_path):
    done = cli("serve", str(tmp_path), "-m", "divprune", "--print")
    assert done.exit_code == 2
    assert done.stderr == f"error: model folder '{tmp_path}' has no config.json\n"


class Other(BaseHTTPRequestHandler):
    """A server of something else."""

    def do_GET(self):
        self.wfile.write(self.server.said)

    def log_message(self, *told):
        pass


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "is it vLLM?"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"data": []}', "is it vLLM?"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "no answer from"),
        (b"garbage\r\n\r\n", "no answer from"),
        (b"HTTP/1.0 404 No\r\n\r\n<p>\nno", "HTTP 404: <p> no"),
    ],
)
def test_a_server_of_something_else_is_one_line(cli, said, message):
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        server.said = said
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = cli("serve", "--check", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


class Vllm(BaseHTTPRequestHandler):
    """A server that answers as vLLM does, and notes what it was asked."""

    def do_GET(self):
        self._say(200, {"data": [{"id": "the-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        pruned = "mm_processor_kwargs" not in body
        if not pruned and not self.server.trusts:
            self._say(400, {"error": {"message": "no such argument"}})
            return
        message = {"message": {"content": " five" if pruned else " three"}}
        usage = {"prompt_tokens": 47 if pruned else 155}
        self._say(200, {"choices": [message], "usage": usage})

    def _say(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *told):
        pass


@pytest.mark.parametrize("path", ["", "/", "/v1"])
@pytest.mark.parametrize("trusts", [True, False])
def test_a_check_asks_with_and_without_pruning(cli, trusts, path):
    with HTTPServer(("127.0.0.1", 0), Vllm) as server:
        server.asked, server.trusts = [], trusts
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        done = cli("serve", "--check", f"http://127.0.0.1:{server.server_port}{path}")
        server.shutdown()
        thread.join()
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "market.png: how many circles are there ?"
    assert lines[1].startswith("as served       47 prompt tokens")
    assert lines[1].endswith("ms  'five'")
    if trusts:
        assert lines[2].startswith("all tokens     155 prompt tokens")
        assert lines[2].endswith("ms  'three'")
    else:
        assert lines[2].startswith("without pruning: HTTP 400: no such argument")
    assert {where for where, _ in server.asked} == {"/v1/chat/completions"}
    bodies = [body for _, body in server.asked]
    settings = [body.get("mm_processor_kwargs") for body in bodies]
    assert settings == [None, None, {"vlmcompress": {"method": "full"}}]  # the first warms up
    assert len({body["cache_salt"] for body in bodies}) == 3
    assert all(body["model"] == "the-model" and body["add_special_tokens"] for body in bodies)
