"""examples/vllm_batch.py, on the sample pictures."""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import vllm
from vllm_cases import PICTURES, SAMPLES, Case, answers, loaded
from vllm_engines import clean_up

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm_batch.py"
QUESTION = "how many circles are there ?"


@pytest.fixture
def as_in_tests(monkeypatch):
    """An engine that starts at once and computes as transformers does in the other tests."""
    quick = functools.partial(vllm.LLM, enforce_eager=True, dtype="float32")
    monkeypatch.setattr(vllm, "LLM", quick)
    yield
    clean_up()


def test_answers_about_a_folder_are_those_of_compress(as_in_tests, monkeypatch, capsys, tmp_path):
    files = sorted(case.files[0] for case in PICTURES)
    for file in files:
        shutil.copy(SAMPLES / file, tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path), QUESTION])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    assert [one["file"] for one in found] == files
    cases = tuple(Case((file,), QUESTION) for file in files)
    right = answers("tiny-llava", cases, "divprune", "25%")
    decode = loaded("tiny-llava")[1].tokenizer.decode
    texts = [decode(ids, skip_special_tokens=True).strip() for ids in right]
    assert [one["answer"] for one in found] == texts
    assert len(set(texts)) > 1
    assert {one["prompt_tokens"] for one in found} == {36 + 11}
