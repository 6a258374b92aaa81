"""How `tests/ops/test_compiled.py` compiles the kernel of pooling."""

_POOL = {
    **{"x_ptr": "", "score_ptr": "*fp32", "y_ptr": "*fp32"},
    **dict.fromkeys(("t_ptr", "h_ptr", "w_ptr"), "*i64"),
    **dict.fromkeys(("H", "W", "A", "B", "D", "stride_xn"), "i32"),
    **dict.fromkeys(("stride_xd", "SCORES", "BD", "BW"), "constexpr"),
}

KERNELS = [
    (
        "pool_kernel",
        _POOL | {"x_ptr": f"*{dtype}"},
        {"stride_xd": 1, "SCORES": scores, "BD": 512, "BW": 32},
        4,
    )
    for dtype in ("fp32", "bf16")
    for scores in (False, True)
]
