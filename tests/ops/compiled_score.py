"""How `test_triton_compiles.py` compiles the kernels of attention rows and of column means."""

# Heads lie side by side: a stride of 1 is known when a kernel is compiled.
_CONSTANT = dict.fromkeys(("D", "BM", "BN", "BD", "stride_qd", "stride_kd"), "constexpr")
_STRIDES = {
    **dict.fromkeys(("stride_qb", "stride_qh", "stride_qm", "stride_qd"), "i32"),
    **dict.fromkeys(("stride_kb", "stride_kh", "stride_kn", "stride_kd"), "i32"),
    **dict.fromkeys(("stride_sm", "stride_sn"), "i32"),
}
_PARTIAL = {
    **{"q_ptr": "", "k_ptr": "", "seen_ptr": "*u8", "max_ptr": "*fp32", "sum_ptr": "*fp32"},
    **{"scaling": "fp32", "heads": "i32", "period": "i32", "rows": "i32", "keys": "i32"},
    **{"each": "i32", **_STRIDES, "SEEN": "constexpr", **_CONSTANT},
}
_ROWS = {
    **{"q_ptr": "", "k_ptr": "", "seen_ptr": "*u8", "max_ptr": "*fp32", "sum_ptr": "*fp32"},
    **{"out_ptr": "*fp32", "scaling": "fp32"},
    **dict.fromkeys(("heads", "group", "loops", "rows", "keys", "splits", "period"), "i32"),
    **_STRIDES,
    **{"SEEN": "constexpr", **_CONSTANT, "BS": "constexpr"},
}
_NUMBERS = {
    **{"scaling": "fp32", "tokens": "i32", "blocks": "i32"},
    **dict.fromkeys(("stride_qh", "stride_qn", "stride_qd"), "i32"),
    **dict.fromkeys(("stride_kh", "stride_kn", "stride_kd"), "i32"),
    **{"VALID": "constexpr", **_CONSTANT},
}
_GIVEN = {
    **{"q_ptr": "", "k_ptr": "", "valid_ptr": "*u8", "table_ptr": "*i64"},
    **{"max_ptr": "*fp32", "sum_ptr": "*fp32"},
}


_ONE = {"stride_qd": 1, "stride_kd": 1}


def _of(signature, dtype):
    return signature | {"q_ptr": f"*{dtype}", "k_ptr": f"*{dtype}"}


KERNELS = [
    row
    for dtype, masked in (("fp32", True), ("bf16", True), ("bf16", False))
    for row in (
        *(
            (
                name,
                _of(signature, dtype),
                {
                    "SEEN": masked,
                    **_ONE,
                    "D": 128,
                    "BM": size,
                    "BN": 64,
                    "BD": across[dtype],
                    **splits,
                },
                8,
            )
            for across in ({"fp32": 32, "bf16": 128},)
            for size in (16, 32)
            for name, signature, splits in (
                ("rows_partial_kernel", _PARTIAL, {}),
                ("rows_kernel", _ROWS, {"BS": 16}),
            )
        ),
        *(
            (
                name,
                _of(_GIVEN | out | _NUMBERS, dtype),
                {"VALID": masked, **_ONE, "D": width, "BM": 64, "BN": 64, "BD": across[dtype]},
                8,
            )
            for width, across in ((64, {"fp32": 32, "bf16": 64}), (80, {"fp32": 32, "bf16": 128}))
            for name, out in (
                ("received_rows_kernel", {}),
                ("received_kernel", {"out_ptr": "*fp32"}),
            )
        ),
    )
]
