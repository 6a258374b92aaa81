"""The launcher for VLMEvalKit, against stand-ins: the package itself is on no index.

The stand-ins do what VLMEvalKit does with a model: look it up by name or class, call it without
arguments, hand it messages through `BaseModel.generate`, and set what a video data set wants.
"""

import json
import sys

import pytest
from PIL import Image

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval import vlmevalkit
from vlmcompress.eval.harnesses.harness import HarnessSettings, Subject
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.models.names import ASSETS

BASE = """
class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image"]

    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        for item in message:
            assert item["type"] in self.allowed_types, item["type"]
        return self.generate_inner(message, dataset)
"""
RUN = """
import argparse, json, sys
import vlmeval.vlm
from vlmeval.config import supported_VLM
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--data", "--model"):
        parser.add_argument(name, nargs="+")
    parser.add_argument("--out")
    given = parser.parse_args()
    model = supported_VLM[given.model[0]]()
    model.set_dump_image(print)
    messages = json.load(open(given.data[0]))
    answers = [model.generate(message=one, dataset="d") for one in messages]
    json.dump([given.model, answers], open(given.out, "w"))
    sys.exit(3)
"""
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A stand-in for a clone of VLMEvalKit, on this process's path as well."""
    vlm = tmp_path / "kit" / "vlmeval" / "vlm"
    vlm.mkdir(parents=True)
    (vlm / "base.py").write_text(BASE)
    (vlm / "__init__.py").write_text("from .base import BaseModel\n")
    (vlm.parent / "__init__.py").write_text("")
    (vlm.parent / "config.py").write_text("supported_VLM = {'taken': None}\n")
    (tmp_path / "kit" / "run.py").write_text(RUN)
    monkeypatch.syspath_prepend(str(tmp_path / "kit"))
    yield tmp_path / "kit"
    for name in [name for name in sys.modules if name.partition(".")[0] == "vlmeval"]:
        del sys.modules[name]


def drawn(count, folder, task="pictures"):
    """Pictures as files, the messages that show them, and how our own evaluation asks them."""
    samples = load_tasks([task])[0].samples(count, 0)
    messages = []
    for sample in samples:
        path = folder / f"{sample.index}.png"
        sample.load()[0].save(path)
        messages.append(
            [{"type": "image", "value": str(path)}, {"type": "text", "value": sample.question}]
        )
    return samples, messages


@pytest.mark.parametrize(
    ("pretrained", "task", "budget"),
    [("tiny-llava", "pictures", "6%"), ("small-llava", "posters", "64")],
)
def test_run_py_gets_the_model_and_its_arguments(
    clone, tmp_path, monkeypatch, pretrained, task, budget
):
    samples, messages = drawn(3, tmp_path, task)
    data, out = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text(json.dumps(messages))
    monkeypatch.setattr(sys, "argv", ["x"])
    arguments = [
        *("--run", str(clone / "run.py"), "--name", "mine", "--pretrained", pretrained),
        *("--method", "divprune", "--budget", budget, "--max-new-tokens", "6"),
        *("--device", "cpu", "--dtype", "float32"),
        *("--", "--data", str(data), "--out", str(out)),
    ]
    with pytest.raises(SystemExit) as ended:
        vlmevalkit.main(arguments)
    assert ended.value.code == 3, "of run.py"
    names, answers = json.loads(out.read_text())
    given = {"pretrained": pretrained, "method": "divprune", "budget": budget, **CPU}
    prompts = [(sample.load(), sample.question) for sample in samples]
    subject = Subject(HarnessSettings.read(given))
    ours = [subject.ask([prompt], max_new_tokens=6)[0].text for prompt in prompts]
    assert names == ["mine"]
    assert answers == ours


def registered(name, **settings):
    vlmevalkit.register("x", {"pretrained": name, **CPU, "max_new_tokens": 3, **settings})
    return sys.modules["vlmeval.config"].supported_VLM["x"]()


def test_both_tables_hold_it(clone):
    model = registered("tiny-llava", method="none")
    vlm = sys.modules["vlmeval.vlm"]
    assert type(model) is getattr(vlm, vlmevalkit.CLASS)
    assert isinstance(model, vlm.BaseModel)
    assert (model.INTERLEAVE, model.is_api, model.VIDEO_LLM) == (True, False, False)
    assert model.max_new_tokens == 3
    assert model.dump_image_func is None, "BaseModel was made ready"
    with pytest.raises(VLMCompressError, match="has a model 'taken'"):
        vlmevalkit.register("taken", {})
    with pytest.raises(VLMCompressError, match="use_vllm"):
        getattr(vlm, vlmevalkit.CLASS)(use_vllm=True, pretrained="tiny-llava", method="none")


def test_clips_are_sampled_as_the_data_set_wants(clone, monkeypatch):
    model = registered("tiny-qwen", method="divprune", budget="25%")
    assert (model.VIDEO_LLM, model.nframe, model.fps) == (True, 8, 1.0)
    seen = []

    def spy(prompts, **generation):
        seen.extend(prompts)
        return Subject.ask(model.subject, prompts, **generation)

    monkeypatch.setattr(model.subject, "ask", spy)
    clip = {"type": "video", "value": str(ASSETS / "samples" / "runway.mp4")}
    message = [clip, {"type": "text", "value": "which way does the circle move ?"}]
    model.nframe = 4
    model.generate(message)
    model.nframe, model.fps = None, 1.0
    model.generate(message)
    (four, _), (by_rate, _) = seen
    assert len(four[0].frames) == 4
    assert by_rate[0].times == pytest.approx([float(k) for k in range(len(by_rate[0].times))])


def test_parts_become_turns():
    parts = [
        {"type": "text", "value": "be brief", "role": "system"},
        {"type": "text", "value": "a"},
        {"type": "image", "value": "b.png"},
        {"type": "text", "value": "c", "role": "user"},
    ]
    assert vlmevalkit.turns(parts) == [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "url": "b.png"},
                {"type": "text", "text": "c"},
            ],
        },
    ]


def test_interleaved_images_keep_their_places(clone, tmp_path, monkeypatch):
    model = registered("tiny-llava", method="none")
    path = tmp_path / "one.png"
    Image.new("RGB", (96, 96), "red").save(path)
    prompts = []

    def spy(given, **generation):
        prompts.extend(given)
        return Subject.ask(model.subject, given, **generation)

    monkeypatch.setattr(model.subject, "ask", spy)
    image, text = {"type": "image", "value": str(path)}, {"type": "text", "value": "and"}
    assert isinstance(model.generate([image, text, image]), str)
    ((media, turns),) = prompts
    assert len(media) == 2
    assert [part["type"] for part in turns[0]["content"]] == ["image", "text", "image"]


def run_main(*arguments):
    vlmevalkit.main(["--name", "m", "--pretrained", "tiny-llava", *arguments])


@pytest.mark.parametrize("extra", [["--model", "other"], ["--config", "c.json"]])
def test_a_chosen_model_is_left_alone(clone, extra, monkeypatch):
    ran = []
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: ran.append((path, run_name)))
    monkeypatch.setattr(sys, "argv", ["x"])
    run_main("--method", "none", "--run", str(clone / "run.py"), "--", *extra)
    assert ran == [(str(clone / "run.py"), "__main__")]
    assert sys.argv == [str(clone / "run.py"), *extra]


def test_mistakes_end_with_one_line(tmp_path, clone):
    run = ["--run", str(clone / "run.py")]
    with pytest.raises(SystemExit, match="error: method= is missing"):
        run_main(*run)
    with pytest.raises(SystemExit, match="error: budget '0'"):
        run_main(*run, "--method", "divprune", "--budget", "0")
    with pytest.raises(SystemExit, match=r"error: there is no .*run\.py' ?: give the run.py"):
        run_main("--run", str(tmp_path / "run.py"), "--method", "none")


def test_without_vlmevalkit_it_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    with pytest.raises(VLMCompressError, match=r"cannot import VLMEvalKit.*clone"):
        vlmevalkit.register("x", {})
