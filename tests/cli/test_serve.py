"""`vlmcompress serve`, without vLLM."""

import importlib.util
import json
import os
import shlex
import sys

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
        (("serve", "tiny-llava", "-m", "nope"), "unknown method 'nope'"),
        (("serve", "tiny-llava", "-m", "divprune", "-b", "0"), "must be above zero"),
        (("serve", "nope", "-m", "divprune"), "nope"),
        (("serve", "tiny-llava", "--check", "http://127.0.0.1:9"), "give it no model"),
        (("serve", "--check", "http://127.0.0.1:9"), "no answer from http://127.0.0.1:9"),
        (("serve", "--check", "file:///etc/passwd"), "no address of a server"),
        ((*SERVE, "--positions", "sideways"), "positions='sideways'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(cli, arguments, message):
    done = cli(*arguments, "--print")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
