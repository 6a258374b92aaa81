"""The lmms-eval plug-in as far as it goes without lmms-eval; tests/lmms runs the rest with it."""

import importlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval import lmms_task
from vlmcompress.eval.harnesses.harness import HarnessAnswer
from vlmcompress.eval.harnesses.lmms_plugin import (
    ALIASES,
    Generation,
    manifests,
    read_batch_size,
    summarize,
)
from vlmcompress.eval.tasks.registry import load_tasks


def test_the_plugin_imports_nothing_heavy_and_no_lmms_eval():
    code = (
        "import json, sys\n"
        "import vlmcompress.eval.harnesses.lmms_plugin\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'lmms_eval'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_manifests_name_the_class(monkeypatch):
    registry = types.ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = types.SimpleNamespace
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    (one,) = manifests()
    assert one.model_id == "vlmcompress"
    assert one.aliases == ALIASES
    module, _, name = one.chat_class_path.rpartition(".")
    code = Path(importlib.util.find_spec(module).origin).read_text()
    assert f"class {name}(lmms)" in code


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"max_new_tokens": 6, "do_sample": False}, {"max_new_tokens": 6, "do_sample": False}),
        ({"temperature": 0, "top_p": 0.9}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"temperature": 0, "do_sample": True}, {"max_new_tokens": 1024, "do_sample": False}),
        (
            {"temperature": 0.2, "do_sample": False},
            {"max_new_tokens": 1024, "do_sample": False},
        ),
        (
            {"temperature": 0.2, "top_p": 0.9, "top_k": None},
            {"max_new_tokens": 1024, "do_sample": True, "temperature": 0.2, "top_p": 0.9},
        ),
        ({"do_sample": True}, {"max_new_tokens": 1024, "do_sample": True}),
        (
            {"num_beams": 3, "repetition_penalty": 1.1},
            {
                "max_new_tokens": 1024,
                "do_sample": False,
                "num_beams": 3,
                "repetition_penalty": 1.1,
            },
        ),
    ],
)
def test_generation_arguments(given, arguments):
    read = Generation.read(given)
    assert read.arguments == arguments
    assert read.ignored == ()


def test_stops_cut_and_the_rest_is_named():
    read = Generation.read({"until": ["\n\n", "###", ";"], "image_aspect_ratio": "pad"})
    assert read.stops == ("###", ";"), "what lmms-eval adds by itself is no stop"
    assert read.cut("one\n\ntwo ; three ### four") == "one\n\ntwo"
    assert read.cut("a;b;c") == "a"
    assert read.ignored == ("image_aspect_ratio",)
    assert Generation.read({"until": "."}).cut(" a. b") == "a"
    assert Generation.read({"until": None}).stops == ()


def test_batch_sizes():
    assert [read_batch_size("8"), read_batch_size(1)] == [8, 1]
    for wrong in ("auto", 0, None, "-2"):
        with pytest.raises(VLMCompressError, match="batch_size="):
            read_batch_size(wrong)


def test_summary_is_of_prompts_with_pictures():
    answers = [
        HarnessAnswer("a", 10, 1, before=100, kept=25.0),
        HarnessAnswer("b", 10, 1, before=300, kept=45.0),
        HarnessAnswer("c", 10, 1, before=0, kept=0.0),
    ]
    assert summarize(answers) == {
        "visual_tokens": 200.0,
        "visual_tokens_kept": 35.0,
        "visual_share_kept": 70 / 400,
    }
    assert summarize(answers[2:]) == {}


@pytest.mark.parametrize("source", ["pictures", "clips", "pictures/count", "posters"])
def test_a_written_task_asks_and_scores_as_ours(source, tmp_path):
    name = lmms_task.write_task(source, 5, 1, tmp_path / "new")
    assert name == "vlmcompress_" + source.replace("/", "_")
    (task,) = load_tasks([source])
    samples = task.samples(5, 1)
    documents = pyarrow.parquet.read_table(tmp_path / "new" / f"{name}.parquet").to_pylist()
    assert len(documents) == 5
    for sample, document in zip(samples, documents, strict=True):
        assert lmms_task.doc_to_text(document) == sample.question
        assert lmms_task.doc_to_target(document) == sample.answers[0]
        _same(lmms_task.doc_to_visual(document), sample.load())
        for answer in (sample.answers[0].upper(), "none of them"):
            score = lmms_task.process_results(document, [answer])
            assert score == {"score": task.score(sample, answer)}
    right = lmms_task.process_results(documents[0], [samples[0].answers[0]])
    assert right == {"score": 1.0}
    assert lmms_task.process_results(documents[0], ["none of them"]) == {"score": 0.0}


def _same(shown, media):
    assert len(shown) == len(media)
    for given, drawn in zip(shown, media, strict=True):
        if isinstance(given, dict):
            assert given["type"] == "video"
            kept, wanted = vars(given["url"]), vars(drawn)
            assert np.array_equal(kept["frames"], wanted["frames"])
            assert {**kept, "frames": 0} == {**wanted, "frames": 0}
        else:
            assert given.mode == "RGB"
            assert given.tobytes() == drawn.convert("RGB").tobytes()


def test_the_recipe_names_functions_that_exist(tmp_path):
    lmms_task.write_task("pictures", 2, 0, tmp_path)

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, _, name = loader.construct_scalar(node).rpartition(".")
        return getattr(importlib.import_module(module), name)

    Loader.add_constructor("!function", function)
    with open(tmp_path / "vlmcompress_pictures.yaml") as file:
        recipe = yaml.load(file, Loader)
    assert recipe["process_results"] is lmms_task.process_results
    assert recipe["doc_to_visual"] is lmms_task.doc_to_visual
    assert recipe["generation_kwargs"] == {"max_new_tokens": 6, "do_sample": False}
    assert recipe["dataset_kwargs"]["data_files"]["test"] == str(
        tmp_path / "vlmcompress_pictures.parquet"
    )
    assert recipe["metric_list"][0]["metric"] == "score"
    assert recipe["metadata"] == {"version": load_tasks(["pictures"])[0].version}


def test_the_command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lmms_task", *arguments, "--out", str(tmp_path)])
        lmms_task.main()

    run("--tasks", "pictures,clips", "--limit", "2")
    assert capsys.readouterr().out.split() == ["vlmcompress_pictures", "vlmcompress_clips"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".yaml", ".parquet"}
    with pytest.raises(SystemExit, match="error: unknown task 'picture'"):
        run("--tasks", "picture")
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(sys, "argv", ["x", "--limit", "1", "--out", str(file / "below")])
    with pytest.raises(SystemExit, match="error: cannot write"):
        lmms_task.main()


def test_media_are_packed_without_loss():
    (sample,) = load_tasks(["clips"])[0].samples(1, 0)
    (packed,) = lmms_task._pack(sample.load())
    assert np.load(io.BytesIO(packed["content"])).shape == (8, 96, 96, 3)
    assert json.loads(packed["about"])["fps"] == sample.load()[0].fps
