"""How `tests/ops/test_compiled.py` compiles the kernel that takes tokens."""

from vlmcompress.ops._triton.gather import BLOCK, TENSORS

# Hidden states, positions, cos and a mask.
KINDS = ("{}", "i64", "{}", "u8")


def _signature(dtype):
    one = {"index_ptr": "*i64", "K": "i32"}
    for n, kind in zip(range(TENSORS), KINDS, strict=True):
        pointer = f"*{kind.format(dtype)}"
        one |= {f"x{n}_ptr": pointer, f"y{n}_ptr": pointer}
        one |= {f"stride_x{n}{axis}": "i32" for axis in "bl"}
        one |= {f"stride_x{n}d": "constexpr", f"D{n}": "i32", f"end{n}": "i32"}
    return one | {"BD": "constexpr"}


KERNELS = [
    (
        "take_kernel",
        _signature(dtype),
        {"BD": BLOCK} | {f"stride_x{n}d": 1 for n in range(TENSORS)},
        4,
    )
    for dtype in ("fp32", "bf16")
]
