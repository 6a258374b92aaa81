"""The entry point of vLLM, in processes that have no use for it."""

import logging
import subprocess
import sys

from vlmcompress import serving


def test_registering_never_raises(monkeypatch, caplog):
    monkeypatch.setattr(serving, "_add_names", lambda: 1 / 0)
    with caplog.at_level(logging.WARNING, "vllm.plugins.vlmcompress"):
        serving.register()
    assert "could not register its models with this vLLM: division by zero" in caplog.text


def test_registering_imports_nothing_heavy():
    code = "import sys, vlmcompress.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
