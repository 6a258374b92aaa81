"""How `tests/ops/test_compiled.py` compiles the kernels of merging."""

from vlmcompress.ops._triton.merge import BLOCKS

_SIZES = dict(zip(("BR", "BC", "BD"), BLOCKS, strict=True))
_MATCH = {
    **dict.fromkeys(("row_ptr", "column_ptr"), "*fp32"),
    **dict.fromkeys(("row_strength_ptr", "column_strength_ptr"), "*fp32"),
    **{"closed_ptr": "*u8", "weight_ptr": "*fp32", "found_ptr": "*i64"},
    **{"R": "i32", "C": "i32", "D": "i32", "power": "fp32"},
    **dict.fromkeys(("stride_rb", "stride_rn", "stride_cb", "stride_cn"), "i32"),
    **dict.fromkeys(("STRENGTH", "CLOSED", "BR", "BC", "BD"), "constexpr"),
}
_SUM = {
    **{"x_ptr": "", "member_ptr": "*i64", "offset_ptr": "*i64", "weight_ptr": "*fp32"},
    **{"y_ptr": "*fp32", "D": "i32", "stride_xn": "i32"},
    **dict.fromkeys(("stride_xd", "WEIGHTED", "BD"), "constexpr"),
}

KERNELS = [
    (
        "best_match_kernel",
        _MATCH,
        {"STRENGTH": strength, "CLOSED": closed, **_SIZES},
        4,
    )
    for strength, closed in ((False, False), (True, False), (True, True))
] + [
    (
        "segment_sum_kernel",
        _SUM | {"x_ptr": f"*{dtype}"},
        {"stride_xd": 1, "WEIGHTED": weighted, "BD": 512},
        4,
    )
    for dtype in ("fp32", "bf16")
    for weighted in (False, True)
]
