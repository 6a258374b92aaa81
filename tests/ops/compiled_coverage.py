"""How the kernels of `vlmcompress.ops._triton.coverage` are compiled: see test_compiled."""

_FLOATS = ("y_ptr", "covered_ptr", "weight_ptr", "gain_ptr")

KERNELS = [
    (
        "dpp_kernel",
        {
            **dict.fromkeys(("y_ptr", "worth_ptr", "left_ptr", "factor_ptr"), "*fp32"),
            "pick_ptr": "*i64",
            **dict.fromkeys(("N", "K"), "i32"),
            **dict.fromkeys(("NOTHING", "BN", "BK"), "constexpr"),
        },
        {"NOTHING": 1e-5, "BN": 1024, "BK": 16},
        8,
    ),
    (
        "gain_kernel",
        {
            **dict.fromkeys(_FLOATS, "*fp32"),
            **dict.fromkeys(("R", "stride_yr", "stride_yc"), "i32"),
            "BR": "constexpr",
        },
        {"BR": 4096},
        8,
    ),
    (
        "cover_kernel",
        {
            **dict.fromkeys(_FLOATS, "*fp32"),
            "known_ptr": "*i32",
            "pick_ptr": "*i64",
            **dict.fromkeys(("R", "N", "K", "stride_yr", "stride_yc"), "i32"),
            **dict.fromkeys(("BR", "BN"), "constexpr"),
        },
        {"BR": 4096, "BN": 4096},
        8,
    ),
]
