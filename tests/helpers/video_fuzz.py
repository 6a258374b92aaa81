"""Damaged videos, the same for the same seed, read by every decoder in a process of its own.

`python tests/helpers/video_fuzz.py --runs 2000 --seed 1` prints what went wrong and fails if
anything did: an abort, a hang, or an error that is not ours.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
"""Where the reader under test lies."""
HANG = 20.0
"""Seconds that one file may take, with all decoders."""
_MEMORY = 6_000_000_000
"""Bytes of address space for the reader, so that a claimed size is an error and no swapping."""
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damage(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """One to three of: bytes changed, a number made extreme, cut off, moved, taken out or in."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        size = max(len(changed), 16)
        # Headers lie at either end; half of all damage is done there.
        near = int(min(size, 1500))
        place = int(random.choice([random.integers(near), -random.integers(near) - 8]))
        place = place % size if random.random() < 0.5 else int(random.integers(size))
        length = int(random.integers(1, max(2, size // 4)))
        match int(random.integers(6)):
            case 0:
                for at in random.integers(size, size=int(random.integers(1, 30))):
                    changed[min(at, len(changed) - 1)] = int(random.integers(256))
            case 1:
                number = int(random.choice(_EXTREMES))
                changed[place : place + 4] = number.to_bytes(4, "big" if place % 2 else "little")
            case 2:
                del changed[max(16, place) :]
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[: size // 2][-length:]
            case _:
                start = int(random.integers(max(1, len(other) - length)))
                changed[place : place + length] = other[start : start + length]
        if len(changed) < 16:
            changed = bytearray(data[:16])
    return bytes(changed)


def read(file: Path, number: int) -> str:
    """What became of one file: a word for each decoder, or the traceback that escaped."""
    from vlmcompress.errors import VLMCompressError
    from vlmcompress.media.decoders.choice import installed
    from vlmcompress.media.video import read_video

    words = []
    sampling = {"frames": 5} if number % 2 else {"fps": 3.0}
    for decoder in installed():
        try:
            video = read_video(file, decoder=decoder, **sampling)
            words.append("read")
            assert len(video.frames) == len(video.indices) == len(video.times)
        except VLMCompressError as error:
            words.append("refused" if "\n" not in str(error) else f"LINES {error!r}")
        except BaseException:
            words.append("ESCAPED " + traceback.format_exc().replace("\n", " | "))
    return " ".join(words)


def work(clips: list[Path], folder: Path, seed: int, first: int, last: int) -> None:
    """Damage and read; a line is printed before and after each file, so that a crash is known."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for number in range(first, last):
        random = np.random.default_rng([seed, number])
        clip, other = (clips[int(k)] for k in random.integers(len(clips), size=2))
        file = folder / f"{number}{clip.suffix}"
        file.write_bytes(damage(clip.read_bytes(), other.read_bytes(), random))
        print(number, clip.parent.name, "begun", flush=True)
        print(number, "done", read(file, number), flush=True)
        file.unlink()


def run(clips: list[Path], folder: Path, seed: int, runs: int) -> tuple[Counter[str], list[str]]:
    """How often which outcome was met, and what was wrong. Files that did harm stay in `folder`."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    next_run = 0
    while next_run < runs:
        command = [sys.executable, __file__, "--work", str(folder), "--seed", str(seed)]
        command += ["--first", str(next_run), "--runs", str(runs), *map(str, clips)]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])},
        ) as process:
            at = next_run
            for line in _lines(process):
                number, _, told = line.partition(" ")
                at = int(number)
                if told.startswith("done "):
                    next_run = at + 1
                    outcomes[told[5:].split(" | ")[0][:60]] += 1
                    if "ESCAPED" in told or "LINES" in told:
                        wrong.append(line)
            if process.poll() is None:
                process.kill()
                wrong.append(f"{at} HANG")
            elif process.returncode:
                wrong.append(f"{at} ABORT {process.returncode}")
            elif next_run < runs:
                wrong.append(f"{at} ended early")
        next_run = max(next_run, at + 1)
    return outcomes, wrong


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _lines(process: subprocess.Popen[str]):
    """Lines as they come; ends with the process, or if none comes for too long."""
    found: queue.Queue[str | None] = queue.Queue()

    def pump():
        for line in process.stdout:
            found.put(line.strip())
        process.wait()
        found.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = found.get(timeout=HANG)
        except queue.Empty:
            return
        if line is None:
            return
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    if given.work is not None:
        work(given.clips, given.work, given.seed, given.first, given.runs)
        return
    from clip_corpus import make_corpus

    folder = Path(tempfile.mkdtemp(prefix="video-fuzz-"))
    clips = list(make_corpus(folder).values())
    outcomes, wrong = run(clips, folder, given.seed, given.runs)
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    print(*wrong, f"{len(wrong)} wrong of {given.runs}", sep="\n")
    if wrong:
        print(f"the files are in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
