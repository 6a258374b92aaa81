"""Shared by the training stages: optimizers, a schedule by time, checkpoints."""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

_IN_A_LAYER = re.compile(r"\.(layers|blocks)\.")
_WARMUP = 0.04
_FLOOR = 0.02


@dataclass(frozen=True)
class TrainingRun:
    """One of the processes that train a stage together.

    Attributes:
        folder: Of checkpoints.
        minutes: Time budget of the whole stage.
        seed: Of weights and batches.
        log: Takes a line; does nothing in all processes but the first.
        rank: Number of the process.
        world: How many there are.
    """

    folder: Path
    minutes: float
    seed: int
    log: Callable[[str], None]
    rank: int = 0
    world: int = 1


class Trainer:
    """Steps a bfloat16 module through float32 copies of its parameters.

    Matrices inside transformer layers go to Muon, everything else to AdamW: clearly faster here
    than AdamW alone. The learning rate follows the share of the time budget that is used up, so
    that a run ends on time on a machine of any speed, and a resumed run continues where it was.
    """

    def __init__(
        self, module: nn.Module, seconds: float, muon_lr: float = 3e-3, adam_lr: float = 3e-3
    ) -> None:
        """Copy the trainable parameters of `module` to float32, and the module to bfloat16."""
        self.module = module
        self.seconds = seconds
        self.spent = 0.0
        self.steps = 0
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.copies = {name: p.detach().float().clone() for name, p in named}
        module.to(torch.bfloat16)
        self.live = dict(named)
        # Transformer layers are called `layers`, in Qwen's vision tower `blocks`.
        matrices = [name for name, p in named if p.ndim == 2 and _IN_A_LAYER.search(name)]
        rest = [self.copies[name] for name, _ in named if name not in set(matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01)
        ]
        if matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    [self.copies[name] for name in matrices],
                    lr=muon_lr,
                    weight_decay=0.01,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self.peaks = [adam_lr, muon_lr]
        self._since = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent, 0 to 1."""
        return min(self.spent / self.seconds, 1.0)

    def step(self, loss: Tensor) -> None:
        """Go one step down `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]
        for name, p in self.live.items():
            self.copies[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        now = time.monotonic()
        self.spent += now - self._since
        self._since = now
        self._average()
        nn.utils.clip_grad_norm_(self.copies.values(), 1.0)
        share = self.progress
        rate = min(share / _WARMUP + 0.02, 1.0) * max(1.0 - max(share - 0.3, 0) / 0.7, _FLOOR)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
        with torch.no_grad():
            for name, p in self.live.items():
                p.copy_(self.copies[name])
        self.steps += 1

    def _average(self) -> None:
        """Average gradients, and the time spent, over the processes that train together.

        Two processes of one thread each are 1.4 times as fast here as one with two threads.
        """
        if not distributed.is_initialized():
            return
        grads = [copy.grad for copy in self.copies.values() if copy.grad is not None]
        flat = torch.cat([*(grad.flatten() for grad in grads), torch.tensor([self.spent])])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for grad, mean in zip(
            grads, torch.split(flat, [*map(Tensor.numel, grads), 1]), strict=False
        ):
            grad.copy_(mean.view_as(grad))
        self.spent = flat[-1].item()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "copies": self.copies,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent,
            "steps": self.steps,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        with torch.no_grad():
            for name, copy in self.copies.items():
                copy.copy_(state["copies"][name])
                self.live[name].copy_(copy)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.spent, self.steps = state["spent"], state["steps"]
        self._since = time.monotonic()


def full_weights(trainer: Trainer) -> dict[str, Tensor]:
    """State of the trained module with its parameters in float32."""
    state = {name: value.float() for name, value in trainer.module.state_dict().items()}
    return state | trainer.copies


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader, or a kill, never meets half of one."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def describe(numbers: Iterable[tuple[str, float]]) -> str:
    """`name 0.93` of several figures on one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in numbers)
