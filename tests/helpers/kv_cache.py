"""The KV cache of a call under the name that the installed transformers has for it."""

from vlmcompress.patches.hooks.arguments import cache_name, caches_in


def cache_in(output):
    """The cache that a forward or `generate` returned."""
    (cache,) = caches_in(output)
    return cache


def cached(module, cache):
    """The argument that gives a cache to a module's forward, or to `generate` of such a model."""
    return {cache_name(module.forward): cache}
