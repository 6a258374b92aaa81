"""What one needs to know to make a table again."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from vlmcompress.eval.worlds import HELD_OUT_SEEDS, VERSION
from vlmcompress.loading import resolve
from vlmcompress.profiling_machine import cpu, versions


def provenance(module: str, model_name: str, last_seed: int) -> dict[str, Any]:
    """Command, commit, weights, questions and versions.

    Args:
        module: that was run, with its command line.
        model_name: built-in name or model folder.
        last_seed: of the questions.
    """
    weights = Path(resolve(model_name)) / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    return {
        "command": f"python -m vlmcompress.eval.{module} " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "model": model_name,
        "weights_sha256": digest,
        "worlds_version": VERSION,
        "seeds": [HELD_OUT_SEEDS.start, last_seed],
        "dtype": "float32",
        "versions": versions(numpy=np.__version__, pillow=PIL.__version__),
    }


def machine(command: str, device: torch.device) -> dict[str, Any]:
    """What a time was measured on.

    Args:
        command: without the arguments, which are those of this process.
        device: that was timed.
    """
    on_cuda = device.type == "cuda"
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU {cpu()}",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def commit() -> str | None:
    """Of the checkout that this file belongs to; None outside of one."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
