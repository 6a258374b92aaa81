"""Other ways to run an engine: compiled, in bfloat16, and without our settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm_cases import ALL, answers, ids_of
from vllm_engines import engine

from vlmcompress import serving
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.serving.vllm import compat

BUDGET = 36


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [{"enforce_eager": False}, {"dtype": "bfloat16"}], ids=["compiled", "bfloat16"]
)
def test_answers_are_those_of_compress_in_float32(extra):
    right = answers("tiny-llava", tuple(ALL), "divprune", BUDGET)
    with engine("tiny-llava", "divprune", BUDGET, **extra) as made:
        assert ids_of(made.ask(ALL)) == right
        assert ids_of(made.ask(ALL, {"method": "full"})) == answers("tiny-llava", tuple(ALL))


PLAIN = """
import json, sys
from vllm_cases import CLIPS, PICTURES
from vllm_engines import engine_of
from vlmcompress.models.names import resolve

if __name__ == "__main__":
    with engine_of(resolve("tiny-qwen"), "tiny-qwen") as made:
        found = made.ask([*PICTURES, *CLIPS], logprobs=5)
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.model_executor.models import ModelRegistry
    print(json.dumps({
        "answers": [
            [[token, {str(k): one.logprob.hex() for k, one in each.items()}]
             for token, each in zip(o.outputs[0].token_ids, o.outputs[0].logprobs)]
            for o in found
        ],
        "known": "VlmcompressLlavaForConditionalGeneration" in ModelRegistry.models,
        "imported": sorted(m for m in sys.modules if m.startswith("vlmcompress.serving.vllm.")),
        "wrapped": hasattr(CPUModelRunner.load_model, "_vlmcompress"),
    }))
"""


@pytest.mark.slow
def test_a_server_without_settings_is_bit_for_bit_what_it_was(tmp_path):
    """The plug-in is loaded, and then not: the same logarithms of probabilities to the last bit."""
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    found = {}
    for plugins in ("vlmcompress", "none"):
        environment = {**os.environ, "VLLM_PLUGINS": plugins}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[plugins] = json.loads(done.stdout.splitlines()[-1])
    assert found["vlmcompress"]["known"]
    assert not found["none"]["known"]
    assert found["vlmcompress"]["answers"] == found["none"]["answers"]
    assert not found["vlmcompress"]["wrapped"]
    assert set(found["vlmcompress"]["imported"]) <= {"vlmcompress.serving.vllm.config"}


def test_a_seam_that_vllm_took_away_is_named(monkeypatch):
    compat.check()
    monkeypatch.delattr(BaseMultiModalProcessor, "_get_mm_prompt_updates")
    with pytest.raises(UnsupportedModelError, match=r"_get_mm_prompt_updates is not what it was"):
        compat.check()


def test_registering_never_raises(monkeypatch):
    monkeypatch.setattr(serving, "_add_names", lambda: 1 / 0)
    serving.register()
