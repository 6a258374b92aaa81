"""How the kernels of `vlmcompress.ops._triton.select` are compiled for a GPU: see test_compiled."""

_COSINE = {
    "scale_ptr": "*fp32",
    "y_ptr": "*fp32",
    **dict.fromkeys(("N", "D", "stride_xb", "stride_xn", "stride_xd"), "i32"),
    **dict.fromkeys(("BN", "BD"), "constexpr"),
}
_GREEDY = {
    **dict.fromkeys(("y_ptr", "near_ptr"), "*fp32"),
    **dict.fromkeys(("first_ptr", "pick_ptr"), "*i64"),
    **dict.fromkeys(("N", "K"), "i32"),
    **dict.fromkeys(("SUM", "HELD", "BN"), "constexpr"),
}

KERNELS = [
    *(
        (
            "cosine_kernel",
            {"x_ptr": dtype, **_COSINE},
            {"BN": 64 if dtype == "*fp32" else 128, "BD": 32},
            4 if dtype == "*fp32" else 8,
        )
        for dtype in ("*fp32", "*bf16", "*fp16")
    ),
    (
        "loneliest_kernel",
        {"y_ptr": "*fp32", "near_ptr": "*fp32", "N": "i32", "BN": "constexpr"},
        {"BN": 1024},
        4,
    ),
    *(
        ("greedy_kernel", _GREEDY, {"SUM": summed, "HELD": held, "BN": block}, 16)
        for summed in (False, True)
        for held, block in ((True, 1024), (True, 8192), (False, 4096))
    ),
]
