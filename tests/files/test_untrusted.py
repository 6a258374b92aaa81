"""Texts and files of strangers: each hostile one is refused with one short line, at once."""

import contextlib
import json
import time

import pytest
from task_files import add_pictures

from vlmcompress.calibrate import read_questions
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.gate import compare
from vlmcompress.eval.results.read import read_run
from vlmcompress.eval.run.store import ANSWERS, Store, begin, read_lines, read_run_json
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.files import untrusted
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.registry import METHODS

DEEP, BOUND = "[" * 100_000 + "]" * 100_000, "[" * 70 + "]" * 70
LONG = "9" * 5000
HOSTILE = {
    "deep": DEEP,
    "seventy deep": BOUND,
    "5000 digits": LONG,
    "400 digits": LONG[:400],
    "half a pair": r'"\ud800"',
    "a list": "[]",
    "nothing": "null",
    "a text": '"x"',
    "cut off": '{"a": ',
}


@contextlib.contextmanager
def refused():
    """One line that is not too long, within a moment, and no other exception."""
    start = time.monotonic()
    with pytest.raises(VLMCompressError) as caught:
        yield
    assert time.monotonic() - start < 5
    line = untrusted.one_line(caught.value)
    assert "\n" not in line
    assert len(line) <= untrusted.MAX_MESSAGE
    line.encode()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_of_every_kind(tmp_path, text):
    """Wherever a file of a stranger is read: the whole file, or hidden in a field of it."""
    hidden = {
        "table": '{"kind": "adaptinfer", "version": 1, "shares": [1, HERE]}',
        "kind": '{"kind": HERE, "version": 1, "shares": [1, 0.5]}',
        "words": '{"origin": "x", "sink": [HERE], "dead": []}',
        "run": '{"provenance": {}, "tasks": [HERE], "cases": {}}',
        "baselines": '{"format": 1, "models": {"tiny-llava": HERE}}',
    }
    for number, content in enumerate(
        [text, *(one.replace("HERE", text) for one in hidden.values())]
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(content)
        with refused():
            parse(f"adaptinfer(table={str(file)!r})")
        with refused():
            parse(f"embedlens(table={str(file)!r})")
        with refused():
            compare(file, "cpu", None)
        with refused():
            read_questions(file)
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "run.json").write_text(content)
        with refused():
            read_run(folder)
        with refused():
            read_run_json(folder)
            begin(folder, {"provenance": {"model": "x"}, "tasks": []}, resume=True)
        data = tmp_path / f"{number}.jsonl"
        data.write_text(content.replace("\n", " ") + "\n")
        with refused():
            load_tasks([str(data)])
    (folder / "answers-0.jsonl").write_text(text + "\n")
    with refused():
        list(read_lines(folder, ANSWERS))
    with refused():
        Store(folder).done()


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "aliases": ALIASES + "name: *i\n",
    "a date that there is not": "name: 2020-99-99\n",
    "a date": "name: 2020-01-01\n",
    "deep": f"name: {DEEP}\n",
    "seventy deep": f"name: {BOUND}\n",
    "5000 digits": f"version: {LONG}\nname: x\n",
    "half a pair": 'name: "\\ud800"\n',
    "a long text": f"name: {'x ' * 200_000}\n",
    "a long list": f"name: [{'1, ' * 20_000}1]\n",
    "a width": "name: n\ndata: d.jsonl\nmetric: exact\nprompts: ['{question:>999999999}']\n",
    "a conversion": "name: n\ndata: d.jsonl\nmetric: exact\nprompts: ['{question!r}']\n",
    "a list": "[]",
    "a tag": "!!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_of_every_kind(tmp_path, text):
    add_pictures(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"image": "0.png", "question": "?", "answer": "x"}\n')
    (tmp_path / "t.yaml").write_text(text)
    with refused():
        load_tasks([str(tmp_path / "t.yaml")])


@pytest.mark.parametrize(
    "spec",
    [
        f"fastv(k={LONG})",
        f"fastv(k={LONG[:400]})",
        f"psigmoid(kappa={LONG[:400]})",
        f"divprune(ratio={'(' * 500}1{')' * 500})",
        f"divprune(ratio={'-' * 9_000}1)",
        f"divprune(ratio={'-' * 90_000}1)",
        "x" * 200_000,
        "\ud800",
        "fastv(k='\ud800')",
    ],
)
def test_method_specs_of_every_kind(spec):
    with refused():
        parse(spec)


@pytest.mark.parametrize("name", METHODS.names())
def test_no_method_takes_a_number_that_nothing_can_hold(name):
    for field in getattr(METHODS.get(name), "__dataclass_fields__", {}):
        with pytest.raises(VLMCompressError):
            parse(f"{name}({field}=1{'0' * 400})")


def test_what_is_large_but_fits_is_read():
    nested = json.loads("[" * untrusted.MAX_DEPTH + "]" * untrusted.MAX_DEPTH)
    assert untrusted.parse_json(json.dumps(nested)) == nested
    assert untrusted.parse_json("9" * untrusted.MAX_DIGITS) == int("9" * untrusted.MAX_DIGITS)
    assert untrusted.parse_yaml("a: [1, 2.5, x]\nb: {c: true}") == {
        "a": [1, 2.5, "x"],
        "b": {"c": True},
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ab", "'ab'"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        ([1, [2, 3]], "[1, [...]]"),
        ({"a": {"b": 1}}, "{'a': {...}}"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        (10**5000, "a number of more than 100 digits"),
        (("a",), "('a')"),
        (None, "None"),
    ],
    ids=range(8),
)
def test_values_in_messages(value, shown):
    assert untrusted.short(value) == shown


def test_what_is_hidden_becomes_visible():
    assert untrusted.visible("a\x1b[2J\u202eb\u2066\ud800c\u00e9\n") == (
        "a\\x1b[2J\\u202eb\\u2066\\ud800c\u00e9\n"
    )
    assert untrusted.one_line("a\n  b\x07") == "a b\\x07"
    assert len(untrusted.one_line("x" * 10**6)) == untrusted.MAX_MESSAGE
