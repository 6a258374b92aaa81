"""Trains the built-in tiny models, stage by stage.

    python -m dev.training.train --work /tmp/tiny --out vlmcompress/assets

Stages: `render` pictures and clips, `tower` (vision), `decoder` (projector and decoder), `clip`
(the text tower that matches the vision tower), `qwen-tower`, `qwen-decoder` (starts from that of
tiny-llava), `samples` (example pictures and clips; needs PyAV), and those of small-llava, which
starts from tiny-llava: `small-render`, `small-tower`, `small-decoder` and `small-clip`. Each
continues from its checkpoint in the work folder; a stage that is done is skipped in seconds. Needs
torch 2.9 or later (`torch.optim.Muon`). Schedules follow the clock, so two runs never give the same
bits; what the shipped weights came from stands in training.json of llava/, qwen/ and small/.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from dev.training.llava.clip_text_tower import export_clip, train_clip
from dev.training.llava.data import prepare
from dev.training.llava.decoder import train_decoder
from dev.training.llava.model import export
from dev.training.llava.tower import train_tower
from dev.training.optim import TrainingRun
from dev.training.qwen.data import prepare_clips
from dev.training.qwen.decoder import train_decoder as train_qwen_decoder
from dev.training.qwen.model import export as export_qwen
from dev.training.qwen.tower import train_tower as train_qwen_tower
from dev.training.sample_files import write_samples
from dev.training.small.data import prepare_posters
from dev.training.small.stages import SMALL_STAGES, add_arguments, run_small

STAGES = (
    *("render", "tower", "decoder", "clip", "qwen-tower", "qwen-decoder", "samples"),
    *SMALL_STAGES,
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dev.training.train",
        description="Train the built-in tiny models on scenes drawn by eval/worlds*.py.",
        epilog="Two CPU cores need about two hours.",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets tiny_llava etc.")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--images", type=int, default=50_000, help="pictures to train on")
    parser.add_argument("--clips", type=int, default=12_000, help="clips to train on")
    parser.add_argument("--tower-minutes", type=float, default=13.0)
    parser.add_argument("--decoder-minutes", type=float, default=30.0)
    parser.add_argument("--clip-minutes", type=float, default=5.0)
    parser.add_argument("--qwen-tower-minutes", type=float, default=13.0)
    parser.add_argument("--qwen-decoder-minutes", type=float, default=50.0)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU cores to use")
    return parser.parse_args()


def _logger(path: Path) -> Callable[[str], None]:
    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with path.open("a") as file:
            file.write(stamped + "\n")

    return log


def _tower(arguments: argparse.Namespace, log: Callable[[str], None]) -> dict[str, Tensor]:
    """Weights of the trained tower, from its file or by training it."""
    path = arguments.work / "tower-weights.pt"
    if path.exists():
        weights: dict[str, Tensor] = torch.load(path)
        return weights
    pictures = prepare(arguments.work / "data", arguments.images, arguments.threads)
    weights = train_tower(pictures, arguments.work, arguments.tower_minutes, arguments.seed, log)
    torch.save(weights, path)
    return weights


def _join(rank: int, arguments: argparse.Namespace) -> Callable[[str], None]:
    """Become one of `arguments.threads` processes of one thread each; returns the log."""
    torch.set_num_threads(1)
    if arguments.threads > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{arguments.work.resolve()}/meeting-{os.getppid()}",
            rank=rank,
            world_size=arguments.threads,
        )
    return _logger(arguments.work / "train.log") if rank == 0 else _ignore


def _decoder(rank: int, arguments: argparse.Namespace) -> None:
    """Train the decoder of tiny-llava."""
    log = _join(rank, arguments)
    train_decoder(
        torch.load(arguments.work / "tower-weights.pt"),
        prepare(arguments.work / "data", arguments.images),
        arguments.work,
        arguments.decoder_minutes,
        arguments.seed,
        rank,
        log,
        (lambda weights: export(weights, arguments.out / "tiny_llava")) if rank == 0 else _ignore,
    )


def _qwen(rank: int, arguments: argparse.Namespace, stage: str) -> None:
    """Train the tower, or the decoder, of tiny-qwen."""
    log = _join(rank, arguments)
    work, llava = arguments.work, arguments.out / "tiny_llava"
    pictures = prepare(work / "data", arguments.images)
    clips = prepare_clips(work / "data", arguments.clips)
    weights = work / "qwen-tower-weights.pt"
    tower = stage == "qwen-tower"
    minutes = arguments.qwen_tower_minutes if tower else arguments.qwen_decoder_minutes
    run = TrainingRun(work, minutes, arguments.seed, log, rank, arguments.threads)
    if tower:
        trained = train_qwen_tower(llava, pictures, clips, run)
        if rank == 0:
            torch.save(trained, weights)
    else:
        run = TrainingRun(
            work, arguments.qwen_decoder_minutes, arguments.seed, log, rank, arguments.threads
        )
        train_qwen_decoder(
            torch.load(weights),
            llava,
            (pictures, clips),
            run,
            (lambda state: export_qwen(state, arguments.out / "tiny_qwen"))
            if rank == 0
            else _ignore,
        )


def _ignore(_: Any) -> None:
    """Take the place of logging and publishing in all processes but the first."""


def main() -> None:
    """Run the stages that were asked for."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = _logger(arguments.work / "train.log")
    stages: Sequence[str] = STAGES if arguments.stage == "all" else (arguments.stage,)
    if "render" in stages:
        prepare(arguments.work / "data", arguments.images, arguments.threads)
        prepare_clips(arguments.work / "data", arguments.clips, arguments.threads)
    if "tower" in stages:
        _tower(arguments, log)
    if "decoder" in stages:
        _tower(arguments, log)
        spawn(_decoder, (arguments,), nprocs=arguments.threads)  # type: ignore[no-untyped-call]
    if "clip" in stages:
        tower = _tower(arguments, log)
        pictures = prepare(arguments.work / "data", arguments.images, arguments.threads)
        minutes, seed = arguments.clip_minutes, arguments.seed
        weights = train_clip(tower, pictures, arguments.work, minutes, seed, log)
        export_clip(weights, arguments.out / "tiny_clip")
    for stage in ("qwen-tower", "qwen-decoder"):
        if stage in stages:
            workers = (arguments, stage)
            spawn(_qwen, workers, nprocs=arguments.threads)  # type: ignore[no-untyped-call]
    if "samples" in stages:
        write_samples(arguments.out / "samples")
    if "small-render" in stages:
        prepare_posters(arguments.work / "data", arguments.posters, arguments.threads)
    for stage in SMALL_STAGES[1:]:
        if stage in stages:
            jobs = (arguments, stage, _join)
            spawn(run_small, jobs, nprocs=arguments.threads)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
