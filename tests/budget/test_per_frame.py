"""A budget per frame reaches the model: every step is selected by itself, and keeps as many."""

import numpy as np
import pytest
import torch

import vlmcompress
from vlmcompress.methods import get_method
from vlmcompress.tokens import Grid, VisualTokens


@pytest.fixture(scope="module")
def model_and_inputs():
    model, processor = vlmcompress.load("tiny-qwen", device="cpu", dtype="float32")
    frames = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    # Steps of very different contrast, so that a whole clip is not selected evenly.
    frames = 128 + (frames - 128.0) * np.repeat([1, 0.4, 0.1, 0.02], 2)[:, None, None, None]
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}
    inputs = processor(
        videos=[frames.astype(np.uint8)],
        text=processor.apply_chat_template([turn], add_generation_prompt=True),
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[{"total_num_frames": 8, "fps": 4.0, "frames_indices": list(range(8))}],
    )
    return model, inputs


def run(model, inputs, method, budget):
    with torch.no_grad(), vlmcompress.compress(model, method, budget) as c:
        logits = model(**inputs).logits[:, -1]
    (image,) = c.report().images
    return image, logits


def test_every_step_is_selected_as_if_it_were_alone(model_and_inputs):
    model, inputs = model_and_inputs
    image, _ = run(model, inputs, "divprune", "5 per frame")
    steps, height, width = image.grid
    size = height * width
    with torch.no_grad():
        (features,) = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        ).pooler_output
    expected = []
    for step in range(steps):
        own = features[step * size : (step + 1) * size]
        picked = get_method("divprune").select(VisualTokens(own, Grid(1, height, width)), 5)
        expected += (picked + step * size).tolist()
    assert image.kept == expected
    assert image.per_frame == {"after": [5] * steps, "last": [5] * steps}


def test_it_differs_from_the_same_number_for_the_whole_clip(model_and_inputs):
    even, logits = run(*model_and_inputs, "divprune", "5 per frame")
    whole, others = run(*model_and_inputs, "divprune", 20)
    assert even.after == whole.after == 20
    assert len(set(whole.per_frame["after"])) > 1
    assert not torch.allclose(logits, others, atol=1e-3)


@pytest.mark.parametrize("method", ["random", "stride", "pool"])
def test_other_methods_keep_as_many_of_each_step(model_and_inputs, method):
    image, _ = run(*model_and_inputs, method, "25% per frame")
    assert len(set(image.per_frame["after"])) == 1
    assert 0 < image.after < image.before
    if method == "random":
        size = image.grid[1] * image.grid[2]
        picks = [tuple(k % size for k in image.kept if k // size == step) for step in range(4)]
        assert len(set(picks)) > 1, "each step draws for itself"


def test_a_decoder_method_may_drop_unevenly_behind_it(model_and_inputs):
    image, _ = run(*model_and_inputs, "divprune+fastv(k=1)", "4 per frame")
    assert len(set(image.per_frame["after"])) == 1
    assert sum(image.per_frame["last"]) < image.after
    assert image.mean == pytest.approx(16, abs=0.5)


def test_the_report_says_what_was_asked_and_counts_the_steps(model_and_inputs):
    model, inputs = model_and_inputs
    with torch.no_grad(), vlmcompress.compress(model, "stride", "5 per frame") as c:
        model(**inputs)
    report = c.report()
    assert report.budget == "5 per frame"
    assert report.to_dict()["images"][0]["per_frame"]["after"] == [5] * 4
    assert "per frame 5 x4" in str(report)
