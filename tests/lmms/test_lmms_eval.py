"""lmms-eval itself runs the plug-in, offline, and finds what our own evaluation finds.

It needs an environment of its own: `make test-lmms-eval`.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms-eval")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

import vlmcompress
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.lmms_task import write_task
from vlmcompress.eval.run.answering import Batch, answer
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.tasks.registry import load_tasks

LIMIT, BATCH = 40, 8
CPU = "device=cpu,dtype=float32"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tasks as files, and a place for results."""
    path = tmp_path_factory.mktemp("lmms")
    for task in ("pictures", "clips", "posters"):
        write_task(task, LIMIT, 0, path / "tasks")
    return path


@pytest.fixture(scope="module")
def manager(folder):
    return TaskManager("ERROR", include_path=str(folder / "tasks"), include_defaults=False)


@pytest.fixture(scope="module")
def models():
    return {
        name: vlmcompress.load(name, device="cpu", dtype="float32")
        for name in ("tiny-llava", "tiny-qwen", "small-llava")
    }


def make(arguments, batch=BATCH):
    return get_model("vlmcompress").create_from_arg_string(
        f"{CPU},{arguments}", {"batch_size": batch}
    )


def ours(models, name, task, method, budget):
    """Answers, accuracy and mean kept tokens of our own evaluation."""
    (task,) = load_tasks([task])
    samples = task.samples(LIMIT, 0)
    case = Case("full" if method == "none" else method, budget)
    answers, kept = [], []
    for start in range(0, LIMIT, BATCH):
        batch = Batch(*models[name], samples[start : start + BATCH])
        found = answer(*models[name], batch.inputs(case), case, max_new_tokens=task.max_new_tokens)
        answers += found.answers
        kept += found.mean
    scores = [task.score(sample, text) for sample, text in zip(samples, answers, strict=True)]
    return answers, sum(scores) / LIMIT, sum(kept) / LIMIT


def theirs(manager, name, task, method, budget):
    given = f"pretrained={name},method={method}" + (f",budget={budget}" if budget else "")
    found = simple_evaluate(
        make(given), tasks=[f"vlmcompress_{task}"], task_manager=manager, batch_size=BATCH
    )
    samples = sorted(found["samples"][f"vlmcompress_{task}"], key=lambda one: one["doc_id"])
    answers = [one["filtered_resps"][0] for one in samples]
    return answers, found["results"][f"vlmcompress_{task}"]["score,none"], found


@pytest.mark.parametrize(
    ("name", "task", "method", "budget"),
    [
        ("tiny-llava", "pictures", "none", None),
        ("tiny-llava", "pictures", "divprune", "25%"),
        ("tiny-llava", "pictures", "divprune", "6%"),
        ("tiny-llava", "pictures", "fastv(k=2)", "50%"),
        ("tiny-qwen", "clips", "none", None),
        ("tiny-qwen", "clips", "divprune", "25%"),
        ("tiny-qwen", "pictures", "divprune", "25%"),
        ("small-llava", "posters", "divprune", "64"),
    ],
)
def test_accuracy_and_every_answer_are_ours(manager, models, name, task, method, budget):
    answers, accuracy, kept = ours(models, name, task, method, budget)
    found, score, results = theirs(manager, name, task, method, budget)
    assert found == answers
    assert score == pytest.approx(accuracy, abs=1e-12)
    assert results["throughput"]["avg_visual_tokens_kept"] == pytest.approx(kept, abs=1e-9)
    assert results["versions"][f"vlmcompress_{task}"] == load_tasks([task])[0].version


def test_fewer_tokens_are_seen_in_accuracy_and_in_the_efficiency_summary(manager):
    _, whole, full = theirs(manager, "tiny-llava", "pictures", "none", None)
    _, part, few = theirs(manager, "tiny-llava", "pictures", "divprune", "6%")
    assert part < whole - 0.1
    entered = [one["efficiency"]["overall"]["total_input_tokens"] for one in (full, few)]
    assert entered[0] - entered[1] == LIMIT * (144 - 9)
    assert few["throughput"]["avg_visual_share_kept"] == pytest.approx(9 / 144)


def test_the_command_finds_the_plug_in_by_its_entry_point(folder, manager, models):
    assert "vlmcompress" in {one.name for one in entry_points(group="lmms_eval.models")}
    answers, accuracy, _ = ours(models, "tiny-llava", "pictures", "divprune", "6%")
    *_, full = theirs(manager, "tiny-llava", "pictures", "none", None)
    baseline = folder / "baseline.jsonl"
    lines = [
        json.dumps({"doc_id": one["doc_id"], "score": one["score"]})
        for one in full["samples"]["vlmcompress_pictures"]
    ]
    baseline.write_text("\n".join(lines))
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "vlmcompress_llava"),
        *("--model_args", f"pretrained=tiny-llava,method=divprune,budget=6%,{CPU}"),
        *("--include_path", str(folder / "tasks"), "--tasks", "vlmcompress_pictures"),
        *("--batch_size", str(BATCH), "--output_path", str(folder / "out"), "--log_samples"),
        *("--baseline", str(baseline)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    (results,) = (folder / "out").rglob("*results.json")
    (logged,) = (folder / "out").rglob("*samples*.jsonl")
    found = json.loads(results.read_text())["results"]["vlmcompress_pictures"]
    assert found["score,none"] == pytest.approx(accuracy, abs=1e-12), done.stdout
    assert found["paired_baseline_score"] == pytest.approx(
        100 * full["results"]["vlmcompress_pictures"]["score,none"]
    )
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    samples.sort(key=lambda one: one["doc_id"])
    assert [one["filtered_resps"] for one in samples] == answers
    assert "avg_visual_tokens_kept" in done.stdout


_TWO = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
tasks, out = sys.argv[1:]
manager = TaskManager("ERROR", include_path=tasks, include_defaults=False)
arguments = "pretrained=tiny-llava,method=divprune,budget=6%,dtype=float32"
model = get_model("vlmcompress").create_from_arg_string(arguments, {"batch_size": 1})
assert model.world_size == 2
found = simple_evaluate(model, tasks=["vlmcompress_pictures"], task_manager=manager, limit=21)
if found is not None:
    lines = sorted((s["doc_id"], s["filtered_resps"][0])
                   for s in found["samples"]["vlmcompress_pictures"])
    open(out, "w").write(json.dumps(lines))
"""


def test_two_processes_answer_as_one(folder, manager):
    script, out = folder / "two.py", folder / "two.json"
    script.write_text(_TWO)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(str(script), str(folder / "tasks"), str(out)),
    ]
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = simple_evaluate(
        make("pretrained=tiny-llava,method=divprune,budget=6%", batch=1),
        tasks=["vlmcompress_pictures"],
        task_manager=manager,
        limit=21,
    )
    found = [
        [one["doc_id"], one["filtered_resps"][0]]
        for one in alone["samples"]["vlmcompress_pictures"]
    ]
    assert json.loads(out.read_text()) == sorted(found)


def request(messages, wishes, split="test", document=0):
    return SimpleNamespace(args=("", lambda doc: messages(doc), wishes, document, "t", split))


def test_documents_of_all_kinds_in_any_order():
    """Text alone, one image, two images; wishes differ; results come in the order of requests."""
    model = make("pretrained=tiny-llava,method=divprune,budget=36")
    model.task_dict = {"t": {"test": ["what color is the circle ?", "what shape is it ?"]}}

    def chat(images):
        def messages(document):
            parts = [{"type": "image", "url": Image.new("RGB", (96, 96), c)} for c in images]
            return [{"role": "user", "content": [*parts, {"type": "text", "text": document}]}]

        return messages

    short, long = {"max_new_tokens": 1}, {"max_new_tokens": 3, "until": ["\n\n"]}
    requests = [
        request(chat(["red"]), long),
        request(chat([]), short),
        request(chat(["red", "blue"]), long, document=1),
        request(chat(["red"]), short),
    ]
    together = model.generate_until(requests)
    alone = [model.generate_until([one])[0] for one in requests]
    assert together == alone
    entered = [one.token_counts.input_tokens for one in together]
    assert entered[0] == entered[1] + 36
    assert [one.token_counts.output_tokens <= 1 for one in together][1::2] == [True, True]


def test_what_it_cannot_do_is_said():
    model = make("pretrained=tiny-llava,method=none")
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until tasks"):
            ask([])
    model.clean()
    with pytest.raises(RuntimeError, match="make another"):
        model.generate_until([])
    for wrong, message in [
        ("pretrained=tiny-llava,metod=none", "did you mean 'method'"),
        ("pretrained=tiny-llava", "method= is missing"),
        ("pretrained=tiny-llava,method=divprune,budget=2.5", "budget '2.5'"),
    ]:
        with pytest.raises(VLMCompressError, match=message):
            make(wrong)
    with pytest.raises(VLMCompressError, match="batch_size='auto'"):
        make("pretrained=tiny-llava,method=none", batch="auto")


def test_commas_inside_a_method_need_quotes():
    model = make('pretrained=tiny-llava,method="pyramiddrop(layers=(1,2),lam=0.6)"')
    assert model.subject.settings.method == "pyramiddrop(layers=(1,2),lam=0.6)"


def test_a_method_that_drops_nothing_is_warned_about(manager):
    from loguru import logger

    heard = []
    sink = logger.add(lambda line: heard.append(str(line)), level="WARNING")
    try:
        theirs(manager, "tiny-llava", "pictures", "divprune", "100%")
        quiet = len(heard)
        assert any("divprune dropped NOTHING" in line for line in heard)
        theirs(manager, "tiny-llava", "pictures", "none", None)
        assert not any("NOTHING" in line for line in heard[quiet:])
    finally:
        logger.remove(sink)
