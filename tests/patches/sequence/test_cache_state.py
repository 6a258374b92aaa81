"""The cache whose layers hold fewer slots than it reports."""

import torch
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from vlmcompress.patches.sequence.cache_state import WHOLE, CacheState, Slots, attach_state


def test_a_first_layer_without_keys_is_passed_over():
    """As in Qwen3.5, whose first layers keep a state instead of keys."""
    cache = Cache(layers=[LinearAttentionLayer(), DynamicLayer()])
    keys = torch.zeros(1, 1, 5, 2)
    cache.update(keys, keys, 1)
    attach_state(cache, CacheState(9, {WHOLE: Slots(torch.arange(5)[None], None)}))
    assert cache.get_seq_length() == 9
    assert cache.get_query_offset() == cache.get_query_offset(1) == 5
    assert cache.get_query_offset(2) == 0
