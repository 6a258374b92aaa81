"""Compile the kernels of a list for real cards, without a GPU and without the interpreter.

python tests/helpers/compile_kernels.py tests/ops/compiled_select.py

Prints a JSON line for each kernel and card.
"""

import importlib
import json
import runpy
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CARDS = {75: 64 * 1024, 80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Compute capability -> bytes of shared memory that one program can have."""

for path in map(Path, sys.argv[1:]):
    module = importlib.import_module(path.stem.replace("compiled_", "vlmcompress.ops._triton."))
    for name, signature, constants, warps in runpy.run_path(str(path))["KERNELS"]:
        source = ASTSource(fn=getattr(module, name), signature=signature, constexprs=constants)
        for capability, limit in CARDS.items():
            target = GPUTarget("cuda", capability, 32)
            made = triton.compile(source, target=target, options={"num_warps": warps})
            shared = made.metadata.shared
            row = {"kernel": name, "sm": capability, "shared": shared, "fits": shared <= limit}
            print(json.dumps(row), flush=True)
