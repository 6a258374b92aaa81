"""A model and its processor by name: built in, a folder, or an id on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.models.names import BUILT_IN, SHIPPED, resolve
from vlmcompress.registry import unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


DTYPES = ("auto", "float32", "bfloat16", "float16")

_SHARED_OPTIONS = ("cache_dir", "local_files_only", "revision", "token", "trust_remote_code")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model, in evaluation mode, and its processor.

    A model that embeds pages (`ColQwen2ForRetrieval` and the like) is told by the `architectures`
    of its configuration.

    Args:
        name_or_path: a built-in name (`tiny-llava`), a folder, or a Hugging Face id.
        device: where the model goes; by default the GPU if there is one, else the CPU. Ignored if
            `device_map` is among `kwargs`.
        dtype: a torch dtype or its name; by default the one the checkpoint was saved in.
        kwargs: passed to `from_pretrained` of `AutoModelForImageTextToText`, or of the retriever.

    Raises:
        VLMCompressError: the name, device or dtype is wrong, or the model cannot be had.
    """
    where = resolve(name_or_path)
    torch_dtype = _dtype(dtype)
    target = None if "device_map" in kwargs else _device(device)

    from vlmcompress.models.torchvision import check_torchvision

    check_torchvision()
    from torch import nn

    from vlmcompress.models.formats import check_format, read_config
    from vlmcompress.models.processors import complete, load_processor

    # Without an answer transformers asks on the terminal whether it may run code of the checkpoint.
    kwargs = {"trust_remote_code": False, **kwargs}
    shared = {name: kwargs[name] for name in _SHARED_OPTIONS if name in kwargs}
    try:
        if not Path(where).is_dir():
            _ask_hub(where, shared)
        config = read_config(where, shared)
        check_format(str(name_or_path), config, bool(kwargs["trust_remote_code"]))
        processor = load_processor(where, **shared)
        with without_bar() if str(name_or_path) in SHIPPED else nullcontext():
            model = _class_of(config).from_pretrained(where, dtype=torch_dtype, **kwargs)
        if target is not None:
            nn.Module.to(model, target)
        complete(processor, model)
    except VLMCompressError:
        raise
    except Exception as error:
        raise _explain(str(name_or_path), where, error) from error
    return model.eval(), processor


@contextmanager
def without_bar() -> Iterator[None]:
    """No bar for what loads in a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _class_of(config: dict[str, Any]) -> Any:
    """What loads a model; no class of transformers' own is found for all retrievers."""
    import transformers

    name = next(iter(config.get("architectures") or ()), "")
    retriever = getattr(transformers, name, None) if name.endswith("ForRetrieval") else None
    return retriever or transformers.AutoModelForImageTextToText


def _ask_hub(name: str, options: dict[str, Any]) -> None:
    """Raise at once if the hub cannot be reached or does not have the model.

    transformers finds out file by file, which takes minutes of retries without a network.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    wanted = {key: options.get(key) for key in ("cache_dir", "revision")}
    if options.get("local_files_only") or isinstance(
        try_to_load_from_cache(name, "config.json", **wanted), str
    ):
        return
    HfApi().model_info(
        name, revision=options.get("revision"), token=options.get("token"), timeout=10
    )


def _dtype(given: str | torch.dtype | None) -> str | torch.dtype:
    import torch

    if given is None or given == "auto":
        return "auto"
    if isinstance(given, torch.dtype):
        return given
    if given not in DTYPES:
        raise unknown("dtype", str(given), list(DTYPES))
    dtype: torch.dtype = getattr(torch, given)
    return dtype


def _device(given: str | torch.device | None) -> torch.device:
    import torch

    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise VLMCompressError(
            f"unknown device {given!r}: give cpu, cuda, cuda:1, mps ..."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise VLMCompressError(
            f"device {given!r} is not there: this machine has {count} CUDA devices"
        )
    return device


def _explain(given: str, where: str, error: Exception) -> VLMCompressError:
    """One line for whatever transformers raised: which model, what was tried, what it said."""
    from huggingface_hub.errors import RepositoryNotFoundError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if reason.endswith(":"):  # a heading, as validators of configurations write them
        reason = " ".join(lines[:2])
    if "Unrecognized configuration class" in reason:
        return UnsupportedModelError(f"model {given!r} does not answer questions about images")
    if Path(where).is_dir():
        return VLMCompressError(f"cannot load the model in folder {where!r}: {reason}")
    if isinstance(error, RepositoryNotFoundError):
        reason = "it has no such model, or the model is private"
    return VLMCompressError(
        f"cannot load {given!r} from the Hugging Face Hub: {reason} "
        f"(give a folder instead, or a built-in model: {', '.join(BUILT_IN)})"
    )
