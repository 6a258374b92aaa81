"""The stages of small-llava, as `dev.training.train` runs them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dev.training.llava.clip_text_tower import export_clip
from dev.training.llava.model import export
from dev.training.optim import TrainingRun
from dev.training.small.clip_text_tower import train_clip
from dev.training.small.data import prepare_posters
from dev.training.small.decoder import train_decoder
from dev.training.small.model import Halved, small_config, small_processor, tiny_weights, vocabulary
from dev.training.small.tower import train_tower
from vlmcompress.eval.worlds.posters.poster import IMAGE_SIZE

SMALL_STAGES = ("small-render", "small-tower", "small-decoder", "small-clip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be said about these stages."""
    parser.add_argument("--posters", type=int, default=16_000, help="posters to train on")
    parser.add_argument("--small-tower-minutes", type=float, default=22.0)
    parser.add_argument("--small-decoder-minutes", type=float, default=40.0)
    parser.add_argument("--small-clip-minutes", type=float, default=5.0)


def run_small(
    rank: int, arguments: Any, stage: str, join: Callable[[int, Any], Callable[[str], None]]
) -> None:
    """Run one stage as one of `arguments.threads` processes.

    Args:
        rank: Of the process.
        arguments: Of the command line.
        stage: One of `SMALL_STAGES`, but the first.
        join: Makes this one of the processes, and gives the log.
    """
    log = join(rank, arguments)
    work, path = arguments.work, arguments.work / "small-tower-weights.pt"
    tiny = tiny_weights(arguments.out / "tiny_llava")
    posters = prepare_posters(work / "data", arguments.posters)
    minutes = getattr(arguments, f"{stage.replace('-', '_')}_minutes", 0.0)
    run = TrainingRun(work, minutes, arguments.seed, log, rank, arguments.threads)
    if stage == "small-tower":
        if not path.exists():
            _save(train_tower(tiny, posters, run), path, rank)
    elif stage == "small-decoder":
        publish = _publisher(arguments.out / "small_llava") if rank == 0 else _ignore
        train_decoder(torch.load(path), tiny, posters, run, publish)
    else:
        weights = train_clip(torch.load(path), arguments.out / "tiny_clip", posters, run)
        if rank == 0:
            export_clip(weights, arguments.out / "small_clip", vocabulary(), IMAGE_SIZE, Halved)


def _save(weights: dict[str, Tensor], path: Path, rank: int) -> None:
    if rank == 0:
        torch.save(weights, path)


def _publisher(folder: Path) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: export(weights, folder, small_config(), small_processor(), Halved)


def _ignore(_: Any) -> None:
    """Take the place of publishing in all processes but the first."""
