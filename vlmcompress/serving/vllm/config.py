"""Settings of a server, checked before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.serving.architectures import KEY, SERVED
from vlmcompress.version import __version__

UNTESTED = "VLMCOMPRESS_ALLOW_UNTESTED"


def preparing(architecture: str, earlier: Any) -> Any:
    """The entry of a pruning model in vLLM's `MODELS_CONFIG_MAP`.

    Args:
        architecture: whose pruning model it is.
        earlier: vLLM's own entry for that, or None.
    """
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    class Prepare(VerifyAndUpdateConfig):  # type: ignore[misc, unused-ignore]
        """Runs in the front end, when vLLM has made its configuration; workers get the result."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            if earlier is not None:
                earlier.verify_and_update_model_config(model_config)
            prepare(architecture, model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            if earlier is not None:
                earlier.verify_and_update_config(vllm_config)
            refuse_untested(vllm_config)

    return Prepare


def prepare(architecture: str, model_config: Any) -> None:
    """Check the settings of a server, settle what it decides once, and let positions be kept.

    Raises:
        VLMCompressError: vLLM has changed, or the settings cannot be served.
    """
    from vllm.logger import init_logger

    from vlmcompress.serving.at_start import settled
    from vlmcompress.serving.settings import Settings
    from vlmcompress.serving.vllm.compat import check
    from vlmcompress.serving.vllm.families import family_of

    check()
    family, config = family_of(architecture), model_config.hf_config
    asked = Settings.of_server(config)
    settings, reason = settled(asked, config)
    if settings.positions == "renumber" and not family.renumbers:
        raise CompositionError(
            f"positions='renumber' is not defined for {SERVED[architecture]}: its positions have "
            "three axes"
        )
    family.check(config, settings)
    setattr(config, KEY, {k: v for k, v in vars(settings).items() if v is not None})
    # vLLM configures the loggers below its own name only.
    init_logger("vllm.plugins.vlmcompress").info_once(
        f"vlmcompress {__version__} prunes {' and '.join(family.modalities)}s of "
        f"{SERVED[architecture]}: {settings}{reason}"
    )
    if settings.positions == "keep" and not model_config.uses_mrope:
        # 1-D rotary positions are laid out by the runner, without a seam; M-RoPE positions come
        # from the model. vLLM looks for sections in the outer configuration, too, of which no
        # rotary embedding is made: the decoder goes on with one axis (`Pruned.forward`).
        config.rope_parameters = {"rope_type": "default", "mrope_section": [1, 1, 1]}
        assert model_config.uses_mrope


def refuse_untested(vllm_config: Any) -> None:
    """Refuse ways of serving in which pruning would be wrong, or was never tried.

    Raises:
        VLMCompressError: names the first.
    """
    multimodal = vllm_config.model_config.multimodal_config
    lora, parallel = vllm_config.lora_config, vllm_config.parallel_config
    transfer = getattr(vllm_config, "ec_transfer_config", None)
    wrong = {
        "--video-pruning-rate cuts clips, too: give one of the two": bool(
            getattr(multimodal, "video_pruning_rate", None)
        ),
        "LoRA of the vision tower counts tokens before pruning: leave out "
        "--enable-tower-connector-lora": lora is not None
        and getattr(lora, "enable_tower_connector_lora", False),
        "--pipeline-parallel-size above 1 is not supported": parallel.pipeline_parallel_size > 1,
        "a disaggregated encoder is not supported: leave out --ec-transfer-config": transfer
        is not None,
        "ready-made embeddings have no layout: leave out --enable-mm-embeds": bool(
            getattr(multimodal, "enable_mm_embeds", False)
        ),
    }
    for reason, holds in wrong.items():
        if holds:
            raise VLMCompressError(f"vlmcompress: {reason}")
    if parallel.tensor_parallel_size > 1 and os.environ.get(UNTESTED) != "1":
        raise VLMCompressError(
            "vlmcompress: --tensor-parallel-size above 1 was never run with pruning: rank 0 is to "
            f"choose for all; set {UNTESTED}=1 to try"
        )
