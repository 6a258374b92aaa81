"""Small data files and settings of tasks."""

import io
import json
from pathlib import Path

from PIL import Image

from vlmcompress.eval.tasks.registry import load_tasks

CLIP = Path(__file__).parents[2] / "vlmcompress" / "assets" / "samples" / "stage.mp4"


def load(name):
    """The one task of a name or a path."""
    return load_tasks([str(name)])[0]


def asked(samples):
    return [(s.kind, s.wording, s.question, *s.answers) for s in samples]


def add_pictures(folder):
    """0.png to 3.png, ever more red."""
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(60 * number))
    return folder


def rows(count=4):
    return [
        {"image": f"{n % 4}.png", "question": f"What is {n}?", "answer": str(n)}
        for n in range(count)
    ]


def write(folder, rows, name="data.jsonl"):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    (folder / name).write_text(text)
    return folder / name


def settings(folder, text, name="task.yaml"):
    (folder / name).write_text(text)
    return folder / name


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()
