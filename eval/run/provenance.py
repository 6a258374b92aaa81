"""What one needs to know to make a table again."""

import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.models.names import resolve
from vlmcompress.profiler.machine import cpu, versions


def of_run(name: str, model: Any, **settings: Any) -> dict[str, Any]:
    """What a run of the evaluation needs to be made again.

    Args:
        name: of the model, as it was given.
        model: itself.
        settings: whatever else there is, such as the seed.
    """
    return {
        "command": command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "model": name,
        "weights_sha256": _weights(name),
        "device": _device(model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        **settings,
        "versions": versions(numpy=np.__version__, pillow=PIL.__version__),
    }


def command() -> str:
    """The command line of this process, without the folder of the interpreter or script."""
    script = Path(sys.argv[0])
    name = script.parent.name if script.name == "__main__.py" else script.name
    return shlex.join([name, *sys.argv[1:]])


def _weights(name: str) -> str | None:
    """Hash of all weights of a model in a folder, in the order of their names."""
    try:
        folder = resolve(name)
    except VLMCompressError:
        return None  # a model that was made in memory
    files = sorted(Path(folder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            for block in iter(lambda: opened.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest() if files else None


def _device(device: torch.device) -> str:
    on_cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_cuda else f"CPU {cpu()}"


def machine(command: str, device: torch.device) -> dict[str, Any]:
    """What a time was measured on.

    Args:
        command: without the arguments, which are those of this process.
        device: that was timed.
    """
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def commit() -> str | None:
    """The commit of the checkout that this file belongs to; None outside of one."""
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
