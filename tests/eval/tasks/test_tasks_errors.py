"""All that can be wrong with a user's own data: one clear error each."""

import pyarrow
import pyarrow.parquet
import pytest
from task_files import CLIP, add_pictures, load, png, rows, settings, write

from vlmcompress.errors import VLMCompressError


@pytest.fixture
def folder(tmp_path):
    return add_pictures(tmp_path)


GOOD = {"image": "0.png", "question": "What?", "answer": "it"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "not JSON: .* at column 2"),
        ("[1, 2]", "expected an object"),
        ({"image": "0.png", "answer": "it"}, "'question' is missing"),
        (GOOD | {"question": ""}, "'question' must be a text, got ''"),
        (GOOD | {"question": None}, "'question' is missing"),
        (GOOD | {"answer": 3}, "'answer' must be a text, got 3"),
        (GOOD | {"answers": ["x"]}, "'answer' or 'answers', got 'answer' and 'answers'"),
        ({"image": "0.png", "question": "What?"}, "'answer' or 'answers', got none"),
        (GOOD | {"answer": None, "answers": []}, "'answers' must be a list of texts"),
        (GOOD | {"answer": None, "answers": ["x", 1]}, "'answers' must be a list of texts"),
        (GOOD | {"answer": None, "answers": "x"}, "'answers' must be a list of texts, got 'x'"),
        (GOOD | {"choices": "AB"}, "'choices' must be a list of texts"),
        (GOOD | {"choices": ["a thing", "it"], "answer": "C"}, "'C' must be the letter"),
        (GOOD | {"kind": 4}, "'kind' must be a text, got 4"),
        ({"question": "What?", "answer": "it"}, "'image' or 'images' or 'video', got none"),
        (GOOD | {"video": "x.mp4"}, "got 'image' and 'video'"),
        (GOOD | {"image": "gone.png"}, r"gone\.png' does not exist"),
        (GOOD | {"image": "."}, "is a folder"),
        (GOOD | {"image": ""}, "an image must be a path, got ''"),
        (GOOD | {"image": 3}, "an image must be a path, got 3"),
        (GOOD | {"image": ["0.png"]}, "'image' must be one image, got"),
        (GOOD | {"image": None, "images": "0.png"}, "'images' must be a list of images"),
        (GOOD | {"image": None, "images": []}, "'images' must be a list of images"),
        (GOOD | {"image": None, "images": ["0.png", "gone.png"]}, r"gone\.png' does not exist"),
        (GOOD | {"image": None, "video": "gone.mp4"}, r"video .*gone\.mp4' does not exist"),
        (GOOD | {"image": None, "video": str(CLIP)}, "images and videos are mixed"),
    ],
)
def test_a_bad_row_is_named_with_its_line(folder, row, message):
    plain = GOOD | {"choices": ["it", "that"]} if "letter" in message else GOOD
    path = write(folder, [plain, "", row])
    with pytest.raises(VLMCompressError, match=rf"data\.jsonl, line 3: .*{message}"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "the file is not YAML"),
        ("- a\n- b", "expected lines of the form"),
        ("", "expected lines of the form"),
        ("1: 2", "expected lines of the form"),
        ("data: data.jsonl\nmetric: exact", "'name' is missing"),
        ("name: n\nmetric: exact", "'data' is missing"),
        ("name: n\ndata: data.jsonl", "'metric' is missing"),
        ("name: 3\ndata: data.jsonl\nmetric: exact", "'name' must be a text, got 3"),
        ("name: a b\ndata: data.jsonl\nmetric: exact", "task name 'a b' may have only"),
        ("name: n\ndata: data.txt\nmetric: exact", "must end in .jsonl or .csv or .parquet"),
        ("name: n\ndata: gone.jsonl\nmetric: exact", r"gone\.jsonl' does not exist"),
        (
            "name: n\ndata: data.jsonl\nmetric: exakt",
            "unknown metric 'exakt': did you mean 'exact'",
        ),
        ("name: n\ndata: data.jsonl\nmetric: exact\nlimt: 3", "unknown key 'limt'"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompt: x", "did you mean 'prompts'"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nthreshold: 1", "unknown key 'threshold'"),
        ("name: n\ndata: data.jsonl\nmetric: anls\nthreshold: 2", "at most 1, got 2"),
        ("name: n\ndata: data.jsonl\nmetric: anls\ntreshold: 1", "did you mean 'threshold'"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nversion: one", "'version' must be a whole"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nversion: true", "'version' must be a whole"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nmax_new_tokens: 0", "a whole number from 1"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompts: hello", "must be a list of texts"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompts: []", "must be a list of texts"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompts: [hello]", "must have {question}"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompts: ['{question} {q}']", "nothing else"),
        ("name: n\ndata: data.jsonl\nmetric: exact\nprompts: ['{question']", "for a brace"),
        (
            "name: n\ndata: data.jsonl\nmetric: exact\nprompts: ['{question} {choices}']",
            "'choices' is missing",
        ),
        ("name: n\ndata: data.jsonl\nmetric: exact\ncolumns: {answr: a}", "did you mean 'answer'"),
        ("name: n\ndata: data.jsonl\nmetric: exact\ncolumns: {answer: a}", "line 1: .*, got none"),
        ("name: n\ndata: data.jsonl\nmetric: choice", "line 1: .*2 to 26 different choices"),
        ("name: n\ndata: data.jsonl\nmetric: vqa", "line 1: .*4 or more people"),
        ("name: n\nworld: moon\nkinds: {a: b}\nmetric: exact\nmax_new_tokens: 1", "world 'moon'"),
        (
            "name: n\nworld: clips\nkinds: {count: b}\nmetric: exact\nmax_new_tokens: 1",
            "unknown kind 'count'",
        ),
        (
            "name: n\nworld: clips\nkinds: [motion]\nmetric: exact\nmax_new_tokens: 1",
            "'kinds' must be names, each with a text",
        ),
        (
            "name: n\nworld: clips\nkinds: {motion: 1}\nmetric: exact\nmax_new_tokens: 1",
            "'kinds' must be names, each with a text",
        ),
        (
            "name: n\nworld: clips\nkinds: {motion: b}\nmetric: exakt\nmax_new_tokens: 1",
            "did you mean 'exact'",
        ),
        (
            "name: n\nworld: clips\nkinds: {motion: b}\nmetric: exact\nmax_new_tokens: 1\ndata: x",
            "unknown key 'data'",
        ),
    ],
)
def test_bad_settings_are_named(folder, text, message):
    write(folder, rows(1))
    with pytest.raises(VLMCompressError, match=message):
        load(settings(folder, text))


def test_files_that_are_missing_empty_or_damaged(folder):
    for name in ("gone.jsonl", "gone.parquet", "gone.yaml"):
        with pytest.raises(VLMCompressError, match=name):
            load(folder / name)
    with pytest.raises(VLMCompressError, match="is an empty file"):
        load(write(folder, []))
    with pytest.raises(VLMCompressError, match="has no rows"):
        load(write(folder, [""]))
    (folder / "bad.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(VLMCompressError, match="not UTF-8"):
        load(folder / "bad.jsonl")
    (folder / "bad.yaml").write_bytes(b"name: \xff")
    with pytest.raises(VLMCompressError, match="not UTF-8"):
        load(folder / "bad.yaml")
    (folder / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(VLMCompressError, match="is not parquet"):
        load(folder / "bad.parquet")


def test_a_bad_row_of_parquet_is_named(folder):
    table = pyarrow.table({"question": ["a", None], "answer": ["x", "y"], "image": [png(0)] * 2})
    pyarrow.parquet.write_table(table, folder / "p.parquet")
    with pytest.raises(VLMCompressError, match=r"p\.parquet, row 2: .*'question' is missing"):
        load(folder / "p.parquet")
