"""Tasks from a user's own data."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from task_files import CLIP, add_pictures, asked, load, png, rows, settings, write

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.eval.metrics.metrics import METRICS
from vlmcompress.eval.tasks.files import CHOICE_PROMPTS, SHORT_PROMPTS
from vlmcompress.eval.tasks.from_worlds import WORLDS
from vlmcompress.eval.worlds.world import KINDS

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    return add_pictures(tmp_path)


def reds(task, seed=0):
    """Red of the first pixel of the images of each sample."""
    loaded = [sample.load() for sample in task.samples(None, seed)]
    return [[image.getpixel((0, 0))[0] for image in images] for images in loaded]


def test_a_csv_gives_the_task_of_the_same_rows_as_json(folder):
    given = rows(4)
    given[1] = {**given[1], "question": 'Two\nlines, and a "quote"?'}
    path = folder / "my data.csv"
    with path.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(given[0]))
        writer.writeheader()
        writer.writerows(given)
    by_lines = load(write(folder, given, "my data.jsonl"))
    task = load(path)
    assert asked(task.samples(None, 0)) == asked(by_lines.samples(None, 0))
    assert reds(task) == reds(by_lines)
    path.write_text('image,question,answers,choices\n0.png,what ?,"[""a""]","[""a"", ""b""]"\n')
    assert load(path).rows[0].choices == ("a", "b")
    path.write_text("image,question,answer\n0.png,what ?,a,more\n")
    with pytest.raises(VLMCompressError, match="line 2: more cells than names"):
        load(path)
    path.write_text('image,question,answer\n0.png,"what ?,a\n')
    with pytest.raises(VLMCompressError, match="not CSV: unexpected end of data"):
        load(path)


def test_jsonl_as_it_is(folder):
    path = write(folder, [*rows(3), "", rows(4)[3]], "my data.jsonl")
    task = load(path)
    assert task.describe() == {
        "name": "my-data",
        "version": 1,
        "medium": "image",
        "metric": "exact",
        "metric_options": {},
        "max_new_tokens": 32,
        "prompts": list(SHORT_PROMPTS),
        "frames": None,
        "data": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": 4,
    }
    samples = task.samples(None, 0)
    short = "\nAnswer the question using a single word or phrase."
    assert asked(samples) == [
        ("all", 0, "What is 0?" + short, "0"),
        ("all", 1, "What is 1?", "1"),
        ("all", 0, "What is 2?" + short, "2"),
        ("all", 1, "What is 3?", "3"),
    ]
    assert reds(task) == [[0], [60], [120], [180]]
    assert task.score(samples[2], "2.") == 1
    assert task.score(samples[2], "3") == 0


def test_order_limit_and_seed(folder):
    task = load(write(folder, rows(50)))
    first = [s.answers[0] for s in task.samples(None, 0)]
    assert first == [str(n) for n in range(50)]
    shuffled = [s.answers[0] for s in task.samples(None, 5)]
    assert shuffled != first
    assert sorted(shuffled) == sorted(first)
    assert shuffled == [str(n) for n in np.random.default_rng(5).permutation(50)]
    assert [s.answers[0] for s in task.samples(7, 5)] == shuffled[:7]
    assert [s.index for s in task.samples(7, 5)] == list(range(7))
    assert [s.wording for s in task.samples(4, 5)] == [0, 1, 0, 1]
    assert len(task.samples(99, 0)) == 50
    with pytest.raises(VLMCompressError, match="at least 1, got 0"):
        task.samples(0, 0)
    with pytest.raises(VLMCompressError, match="seed -1 is out of range"):
        task.samples(5, -1)


def test_several_images_answers_kind_and_id(folder):
    row = {"images": ["3.png", "1.png"], "question": "Same {color}?", "answers": ["no", "not"]}
    task = load(write(folder, [row | {"kind": "pair", "id": 17}]))
    (sample,) = task.samples(None, 0)
    assert sample.kind == "pair"
    assert sample.extra["id"] == "17"
    assert sample.question.startswith("Same {color}?\n")
    assert sample.answers == ("no", "not")
    assert reds(task) == [[180, 60]]
    assert task.score(sample, "not") == 1


def test_rows_with_choices_are_chosen_from(folder):
    row = {"image": "0.png", "question": "Which?", "choices": ["red", "blue"], "answer": "B"}
    task = load(write(folder, [row, row]))
    assert task.metric == "choice"
    assert task.prompts == CHOICE_PROMPTS
    told, bare = task.samples(None, 0)
    assert told.question == (
        "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    assert bare.question == "Which?\nA. red\nB. blue"
    assert [task.score(told, answer) for answer in ("B", "blue", "A", "red")] == [1, 1, 0, 0]


def test_videos(folder):
    row = {"video": str(CLIP), "question": "What?", "answer": "it"}
    write(folder, [row])
    assert load(folder / "data.jsonl").medium == "video"
    task = load(settings(folder, "name: v\ndata: data.jsonl\nmetric: exact\nframes: 3\n"))
    (video,) = task.samples(None, 0)[0].load()
    assert len(video.frames) == 3
    assert task.describe()["frames"] == 3


YAML = """
name: group/mine
version: 3
data: data.jsonl
metric: anls
threshold: 0.3
max_new_tokens: 9
columns: {kind: topic, question: query}
prompts:
  - "{question} Briefly."
  - "Q: {question} {{x}}"
  - "{question}"
"""


def test_yaml_sets_everything(folder):
    write(
        folder,
        [{"topic": f"t{n}", "query": row.pop("question"), **row} for n, row in enumerate(rows())],
    )
    task = load(settings(folder, YAML))
    described = task.describe()
    assert (task.name, task.version, task.metric) == ("group/mine", 3, "anls")
    assert task.max_new_tokens == 9
    assert described["metric_options"] == {"threshold": 0.3}
    samples = task.samples(None, 0)
    assert [s.question for s in samples] == [
        "What is 0? Briefly.",
        "Q: What is 1? {x}",
        "What is 2?",
        "What is 3? Briefly.",
    ]
    assert [s.kind for s in samples] == ["t0", "t1", "t2", "t3"]
    assert [s.wording for s in samples] == [0, 1, 2, 0]


def test_yaml_may_switch_the_threshold_of_iou_off(folder):
    write(folder, [rows(1)[0] | {"answer": "[0, 0, 10, 10]"}])
    text = "name: b\ndata: data.jsonl\nmetric: iou\n"
    task, mean = (load(settings(folder, text + more)) for more in ("", "threshold: null\n"))
    (sample,) = task.samples(None, 0)
    assert task.score(sample, "[0, 0, 10, 6]") == 1
    assert mean.score(sample, "[0, 0, 10, 6]") == pytest.approx(0.6)


def test_yaml_may_describe_a_world(folder):
    text = "name: mine\nworld: clips\nkinds: {motion: m}\nmetric: exact\nmax_new_tokens: 4\n"
    samples = load(settings(folder, text)).samples(4, 0)
    assert {(s.kind, s.task) for s in samples} == {("motion", "mine")}


@pytest.mark.parametrize(
    "images",
    [
        {"image": ["0.png", "1.png", "2.png"]},
        {"image": [png(0), png(60), png(120)]},
        {"image": [{"bytes": png(60 * n), "path": "gone.png"} for n in range(3)]},
        {"image": [{"bytes": None, "path": f"{n}.png"} for n in range(3)]},
        {"images": [[png(0)], [png(60)], [png(120)]]},
        {"image": [None, png(60), None], "images": [["0.png"], None, ["2.png"]]},
    ],
)
@pytest.mark.parametrize("group", [1, 2, 100])
def test_parquet_holds_images_in_every_form(folder, images, group):
    table = pyarrow.table(
        {"question": ["a", "b", "c"], "answers": [["x"], ["y", "z"], ["w"]]} | images
    )
    pyarrow.parquet.write_table(table, folder / "p.parquet", row_group_size=group)
    task = load(folder / "p.parquet")
    assert reds(task) == [[0], [60], [120]]
    assert [s.answers for s in task.samples(None, 0)] == [("x",), ("y", "z"), ("w",)]
    order = np.random.default_rng(1).permutation(3)
    assert reds(task, seed=1) == [[60 * n] for n in order]


def test_parquet_holds_several_images_a_row(folder):
    images = [[png(0), png(60)], [png(120)]]
    table = pyarrow.table({"question": ["a", "b"], "answer": ["x", "y"], "images": images})
    pyarrow.parquet.write_table(table, folder / "p.parquet")
    assert reds(load(folder / "p.parquet")) == [[0, 60], [120]]


def test_parquet_with_other_names(folder):
    table = pyarrow.table({"query": ["a", "b"], "label": ["x", "y"], "img": [png(0), png(60)]})
    pyarrow.parquet.write_table(table, folder / "p.parquet")
    columns = "columns: {question: query, answer: label, image: img}"
    task = load(settings(folder, f"name: n\ndata: p.parquet\nmetric: exact\n{columns}"))
    assert reds(task) == [[0], [60]]
    assert [s.answers for s in task.samples(None, 0)] == [("x",), ("y",)]


def test_a_bad_image_in_parquet_is_named_when_it_is_read(folder):
    table = pyarrow.table({"question": ["a"], "answer": ["x"], "image": [b"no picture"]})
    pyarrow.parquet.write_table(table, folder / "p.parquet")
    sample = load(folder / "p.parquet").samples(None, 0)[0]
    with pytest.raises(MediaError, match=r"p\.parquet, row 1, image 1' is not an image"):
        sample.load()


def test_images_are_read_late(folder):
    task = load(write(folder, rows(1)))
    (folder / "0.png").unlink()
    (sample,) = task.samples(None, 0)
    with pytest.raises(MediaError, match=r"0\.png' does not exist"):
        sample.load()


def test_the_example_asks_about_the_shipped_pictures():
    task = load(ROOT / "examples" / "tasks" / "pictures.yaml")
    bare = load(ROOT / "examples" / "tasks" / "pictures.jsonl")
    shipped = json.loads((CLIP.parent / "samples.json").read_text())
    expected = [(sample["question"], sample["answer"]) for sample in shipped.values()]
    samples = task.samples(None, 0)
    assert [(s.question, s.answers[0]) for s in samples] == expected
    assert {s.kind for s in samples} < set(KINDS)
    assert [s.answers for s in bare.samples(None, 0)] == [s.answers for s in samples]
    assert [image.size for s in samples for image in s.load()] == [(96, 96)] * len(expected)


def test_the_page_lists_every_field_key_and_metric(folder):
    page = (ROOT / "docs" / "tasks.md").read_text()
    listed = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\|[^|]+\|", page, re.M))))
    assert listed >= {*METRICS.names(), *WORLDS}
    write(folder, rows(1))
    with pytest.raises(VLMCompressError) as error:
        load(settings(folder, "name: n\ndata: data.jsonl\nmetric: exact\nxyz: 1"))
    keys = str(error.value).partition("known: ")[2].split(", ")
    assert len(keys) == 8
    assert listed >= set(keys)


def test_the_metric_of_the_page_works(folder, monkeypatch):
    page = (ROOT / "docs" / "tasks.md").read_text()
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], {"__name__": "page"})
    write(folder, rows(1))
    task = load(settings(folder, "name: n\ndata: data.jsonl\nmetric: contains"))
    (sample,) = task.samples(None, 0)
    assert [task.score(sample, answer) for answer in ("it is 0", "it is 1")] == [1, 0]
