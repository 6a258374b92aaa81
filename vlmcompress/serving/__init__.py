"""Visual token reduction in serving engines: the plug-in of vLLM.

`register` is the entry point of the group `vllm.general_plugins`. vLLM calls it in each of its
processes, also for users who serve other models: it only adds names, and imports nothing of
`vlmcompress` that knows torch.
"""

from __future__ import annotations

from vlmcompress.serving.architectures import SERVED, hf_overrides, pruned_name

__all__ = ["SERVED", "hf_overrides", "register"]


def register() -> None:
    """Add the pruning models to vLLM, under names of their own beside vLLM's.

    Never raises: a vLLM that has changed serves all other models as before, and says what is
    missing when one of ours is asked for (`vllm.compat.check`).
    """
    import logging

    try:
        _add_names()
    except Exception as error:
        logging.getLogger("vllm.plugins.vlmcompress").warning(
            "vlmcompress could not register its models with this vLLM: %s", error
        )


def _add_names() -> None:
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vlmcompress.serving.vllm.config import preparing

    for name in SERVED:
        ours = pruned_name(name)
        if ours not in MODELS_CONFIG_MAP:
            # As text: the class is imported where the model is wanted.
            ModelRegistry.register_model(ours, f"vlmcompress.serving.vllm.families:{name}")
            MODELS_CONFIG_MAP[ours] = preparing(name, MODELS_CONFIG_MAP.get(name))
