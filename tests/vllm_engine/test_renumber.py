"""Positions without gaps, and a decoder with few KV blocks."""

from __future__ import annotations

import pytest
from vllm_cases import ALL, PICTURES, answers, ids_of
from vllm_engines import engine

from vlmcompress.errors import VLMCompressError

BUDGET = 36


def test_renumbered_answers_are_those_of_compress():
    right = answers("tiny-llava", tuple(ALL), "divprune", BUDGET, "renumber")
    with engine("tiny-llava", "divprune", BUDGET, "renumber", max_num_batched_tokens=24) as made:
        assert ids_of(made.ask(ALL)) == right
        assert ids_of(made.ask(ALL)) == right
        assert ids_of(made.ask(ALL, {"method": "full"})) == answers("tiny-llava", tuple(ALL))


def test_preempted_requests_end_as_others_do():
    """14 blocks of 32 tokens for 8 requests of up to 190 tokens."""
    long = {"tokens": 90, "ignore_eos": True}
    found = {}
    for blocks in (None, 14):
        with engine(
            "tiny-llava",
            "divprune",
            BUDGET,
            enable_prefix_caching=False,
            max_model_len=256,
            num_gpu_blocks_override=blocks,
        ) as made:
            found[blocks] = ids_of(made.ask(ALL[:16], **long))
            times = _preemptions(made.llm)
        assert (times > 0) == (blocks is not None)
    assert found[14] == found[None]


def _preemptions(llm):
    counters = [one for one in llm.get_metrics() if one.name == "vllm:num_preemptions"]
    return sum(one.value for one in counters)


@pytest.mark.parametrize(
    ("name", "settings", "extra", "message"),
    [
        ("tiny-llava", ("fastv", "25%"), {}, "fastv cannot be served"),
        ("tiny-llava", ("divprune", "0.01 flops"), {}, "out of reach"),
        ("tiny-llava", ("divprune", "50 ms"), {}, "a server has no time"),
        ("tiny-llava", ("zoo-prune", "25%"), {}, "needs projection"),
        ("tiny-llava", ("text-only", None), {}, "keeps no token"),
        ("tiny-qwen", ("divprune", "25%", "renumber"), {}, "three axes"),
        ("tiny-qwen", ("divprune", "25%"), {"video_pruning_rate": 0.5}, "give one of the two"),
        ("tiny-llava", ("divprune", "25%"), {"enable_mm_embeds": True}, "--enable-mm-embeds"),
        ("tiny-llava", ("divprune", "25%"), {"pipeline_parallel_size": 2}, "pipeline-parallel"),
        ("tiny-llava", ("divprune", "25%"), {"tensor_parallel_size": 2}, "tensor-parallel"),
        (
            "tiny-llava",
            ("divprune", "25%"),
            {"enable_lora": True, "enable_tower_connector_lora": True},
            "LoRA of the vision tower",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_weights_load(name, settings, extra, message):
    with (
        pytest.raises((VLMCompressError, ValueError), match=message),
        engine(name, *settings, **extra),
    ):
        pass


@pytest.mark.parametrize("method", ["auto", "divprune"])
def test_auto_and_a_share_of_the_flops_are_settled_at_the_start(method):
    with engine("tiny-llava", method, "0.9 flops") as made:
        (found,) = made.ask(PICTURES[:1])
        (whole,) = made.ask(PICTURES[:1], {"method": "full"})
        settled = made.llm.llm_engine.model_config.hf_config.vlmcompress
    assert settled["method"] not in ("auto", None)
    assert settled["budget"].endswith("%")
    share = float(settled["budget"].rstrip("%")) / 100
    dropped = len(whole.prompt_token_ids) - len(found.prompt_token_ids)
    assert 0 < dropped < 144
    if method != "auto":  # which may name one that rounds counts of its own
        assert dropped == 144 - round(share * 144)
