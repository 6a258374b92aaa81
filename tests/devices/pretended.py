"""A pretended accelerator: tensors that say they are on "cuda:0" and are computed on the CPU.

Every operation is carried out on CPU tensors inside, so that code which looks at values runs to its
end and finds what it finds on the CPU. What a device would refuse is refused (operands on two
devices), and what would make the host wait for it is counted, with the place that asked.

    with Pretended() as gpu:
        gpu.put(model, "cuda:0")            # parameters and buffers
        with gpu.watched():                 # from here on waits are counted
            model.generate(**there)
    gpu.own_waits()                         # Counter of (kind, "file:line (function)")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which cannot be imported while `torch.Generator` is another
from places import own_place, place
from stand_ins import FakeEvent, Seeds, generator_class, tensor_constructor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

CPU = torch.device("cpu")
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "allclose",
}
"""A value goes to the host, or the number of elements of the result depends on values."""
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
"""These take indices from the CPU along, whatever their shape."""
COPIES = {"copy_", "_to_copy", "_copy_from", "set_", "lift_fresh", "lift", "lift_fresh_copy"}
STRICT = {
    "cat",
    "stack",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "gather",
    "scatter",
    "scatter_",
    "index_select",
    "embedding",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "index_add",
    "index_add_",
    "searchsorted",
    "convolution",
    "native_layer_norm",
    "take",
    "topk",
    "isin",
}
"""These refuse a number on the CPU, too, which others take."""


class Far(Tensor):
    """A tensor that says it is elsewhere; `near` is where it is computed."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor, device: torch.device) -> Far:
        self = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=device,
            requires_grad=False,
        )
        self.near = near
        return self

    def __repr__(self) -> str:
        return f"Far({self.near!r}, {self.device})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ACTIVE[-1].carry_out(func, args, kwargs or {})

    def tolist(self) -> Any:
        _ACTIVE[-1].note("tolist")
        return self.near.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: Any) -> Any:
        made = Far(self.near.detach().clone(), self.device)
        made.requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter) or getattr(self, "_is_param", False):
            made._is_param = True
        memo[id(self)] = made
        return made


_ACTIVE: list[Pretended] = []


class Pretended(TorchDispatchMode):
    """While active, "cuda" devices exist. Everything but tensors stays what it is."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.count = count
        self.waits: Counter[tuple[str, str]] = Counter()
        self._watching = False
        self._seeds = Seeds()

    def __enter__(self) -> Pretended:
        self._stack = ExitStack()
        for name, value in {
            "_lazy_init": lambda: None,
            "Event": FakeEvent.of(lambda: self.note("event.synchronize")),
            "current_stream": lambda *_: None,
            "synchronize": lambda *_: None,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "get_device_capability": lambda *_: (8, 0),
            "get_device_name": lambda *_: "pretended",
            "is_current_stream_capturing": lambda: False,
        }.items():
            self._stack.enter_context(mock.patch.object(torch.cuda, name, value))
        made = {
            "Generator": generator_class(torch.Generator, self._seeds),
            # The constructor reads scalars where no mode sees it.
            "tensor": tensor_constructor(torch.tensor, Far),
        }
        for name, value in made.items():
            self._stack.enter_context(mock.patch.object(torch, name, value))
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        _ACTIVE.append(self)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        _ACTIVE.pop()
        self._stack.close()

    @contextmanager
    def watched(self, on: bool = True) -> Iterator[None]:
        """Count waits during the block, or do not."""
        before, self._watching = self._watching, on
        try:
            yield
        finally:
            self._watching = before

    def own_waits(self) -> Counter[tuple[str, str]]:
        """Those that our code asked for, not transformers."""
        return Counter({key: n for key, n in self.waits.items() if own_place(key[1])})

    def put(self, module: nn.Module, device: str) -> None:
        """Move parameters and buffers, shared ones once."""
        there, seen = torch.device(device), {}

        def far(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            if id(tensor) not in seen:
                near = tensor.near if isinstance(tensor, Far) else tensor.detach()
                made = Far(near, there)
                is_parameter = isinstance(tensor, nn.Parameter)
                seen[id(tensor)] = nn.Parameter(made, False) if is_parameter else made
            return seen[id(tensor)]

        for part in module.modules():
            for held in (part._parameters, part._buffers):
                held.update({name: far(value) for name, value in held.items()})

    def note(self, kind: str) -> None:
        """Count a wait."""
        if self._watching:
            self.waits[kind, place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.carry_out(func, args, kwargs or {})

    def carry_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation."""
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        far = [x for x in tensors if isinstance(x, Far)]
        wanted = self._wanted(kwargs.get("device"))
        target = wanted if wanted is not None else far[0].device if far else CPU
        if not far and target.type != "cuda":
            return func(*args, **kwargs)
        _check(name, tensors, args)
        self._seeds.check(kwargs.get("generator"), target)
        self._count(name, args, kwargs, wanted)
        args_in, kwargs_in = tree_map_only(Far, lambda x: x.near, (args, kwargs))
        if wanted is not None:
            kwargs_in["device"] = CPU
        out = _computed(func, name, args_in, kwargs_in)
        if not any(isinstance(x, Tensor) for x in tree_iter(out)):
            return out
        if target.type != "cuda":  # what is inside must not be shared with what is outside
            near = [id(one.near) for one in far]
            return tree_map_only(Tensor, lambda x: x.clone() if id(x) in near else x, out)
        if name == "copy_" and not isinstance(args[0], Far):
            return args[0]
        out = tree_map_only(Tensor, lambda x: Far(x, target), out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _wanted(self, device: Any) -> torch.device | None:
        if device is None:
            return None
        device = torch.device(device)
        if device.type != "cuda":
            return device
        if (device.index or 0) >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", device.index or 0)

    def _count(self, name: str, args: Any, kwargs: Any, wanted: torch.device | None) -> None:
        """Note where the host waits. Copies to a device are handed over; nobody waits for them."""
        first = args[0] if args and isinstance(args[0], Far) else None
        if name in WAITS:
            self.note(name)
        elif name in INDEXING:
            for one in args[1]:
                if isinstance(one, Far) and one.dtype in (torch.bool, torch.uint8):
                    self.note("index by mask")
        elif name == "repeat_interleave" and first is not None:
            if kwargs.get("output_size") is None:
                self.note("repeat_interleave without output_size")
        elif name == "_to_copy" and first is not None and wanted == CPU:
            self.note("to the CPU")
        elif name == "copy_" and first is None and isinstance(args[1], Far):
            self.note("copy_ to the CPU")


def _computed(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    if name == "histc" and not args[0].is_floating_point():  # CUDA counts integers, too
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _check(name: str, tensors: list[Tensor], args: Any) -> None:
    """Raise what a device raises where operands are not all on it."""
    if name in COPIES or name.startswith("sym_"):
        return
    if name in INDEXING:
        own = args[0].device
        for one in args[1]:
            if one is not None and one.device not in (own, CPU):
                raise RuntimeError(
                    f"indices should be either on cpu or on the same device as the indexed tensor "
                    f"({own}), aten::{name} at {place()}"
                )
        tensors = [one for one in (args[0], *args[2:3]) if isinstance(one, Tensor)]
    numbers = name not in STRICT
    found = {
        str(one.device)
        for one in tensors
        if not (numbers and one.dim() == 0 and one.device.type == "cpu")
    }
    if len(found) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(found))}! (aten::{name} at {place()})"
        )
