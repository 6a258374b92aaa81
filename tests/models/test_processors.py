"""Processors on a machine without torchvision, which is what the tests run on."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from processor_folders import KINDS, write_folder
from transformers import AutoImageProcessor
from transformers.utils import import_utils

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.models import processors, video_processors
from vlmcompress.models.processors import load_processor
from vlmcompress.models.video_processors_qwen import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

WITH_VIDEO = [name for name in KINDS if name != "glm4v"]
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
METADATA = {"total_num_frames": 40, "fps": 10.0, "frames_indices": [0, 9, 20, 31, 39]}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None,
    reason="with torchvision the classes of transformers are used",
)


@pytest.fixture(scope="session")
def load_kind(tmp_path_factory):
    """The processor of a family by name, from a folder that is written once."""
    root, loaded = tmp_path_factory.mktemp("processors"), {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_processor(str(write_folder(root / name, KINDS[name])))
        return loaded[name]

    load.root = root
    return load


def clip(frames=5, height=48, width=64):
    """Smooth, colourful frames that differ."""
    t, y, x, c = np.meshgrid(*map(np.arange, (frames, height, width, 3)), indexing="ij")
    waves = 127 + 120 * np.sin(x / 7 + t / 2 + c) * np.cos(y / 5 - c)
    return waves.clip(0, 255).astype(np.uint8)


def prompt(processor, kind):
    turn = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "what ?"}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True)


def ask_about_clip(processor, frames, **options):
    return processor(
        videos=[[frames]],
        text=prompt(processor, "video"),
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[METADATA | {"frames_indices": METADATA["frames_indices"][: len(frames)]}],
        **options,
    )


@pytest.mark.parametrize("name", KINDS)
def test_transformers_alone_does_not_load_it_and_we_do(load_kind, name):
    processor = load_kind(name)
    assert type(processor).__name__ == KINDS[name].processor
    assert isinstance(processor, getattr(transformers, KINDS[name].processor))
    with pytest.raises((ImportError, AttributeError, ValueError)):
        transformers.AutoProcessor.from_pretrained(load_kind.root / name)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_images_work(load_kind, name):
    processor = load_kind(name)
    image = Image.fromarray(clip(1)[0])
    inputs = processor(images=[image], text=prompt(processor, "image"), return_tensors="pt")
    assert inputs["pixel_values" if "pixel_values" in inputs else "pixel_values_images"].numel()
    marked = (inputs["input_ids"] == processor.image_token_id).sum()
    assert marked > 1
    if name in [*QWEN, "glm4v"]:
        assert (inputs["mm_token_type_ids"] == 1).sum() == marked


@pytest.mark.parametrize(
    ("name", "placeholders", "shape"),
    [
        ("qwen2_vl", 3 * 6 * 8, (3 * 12 * 16, 96)),
        ("qwen2_5_vl", 3 * 6 * 8, (3 * 12 * 16, 96)),
        ("qwen3_vl", 3 * 6 * 8, (3 * 12 * 16, 96)),
        ("llava_onevision", 5 * 4 + 1, (1, 5, 3, 32, 32)),
        ("llava_next_video", 5 * 4, (1, 5, 3, 32, 32)),
        ("video_llava", 5 * 17, (1, 5, 3, 32, 32)),
        ("internvl", 5 * 4, (5, 3, 32, 32)),
        ("smolvlm", 5 * 4, (1, 5, 3, 32, 32)),
    ],
)
def test_videos_work(load_kind, name, placeholders, shape):
    processor = load_kind(name)
    inputs = ask_about_clip(processor, clip())
    one = "image" if name in ("internvl", "smolvlm") else "video"
    token = getattr(processor, f"{one}_token_id")
    assert (inputs["input_ids"] == token).sum() == placeholders
    pixels = inputs.get("pixel_values_videos", inputs.get("pixel_values"))
    assert pixels.shape == shape
    assert pixels.dtype == torch.float32
    if name in QWEN:
        assert inputs["video_grid_thw"].tolist() == [[3, 12, 16]]
        assert (inputs["mm_token_type_ids"] == 2).sum() == placeholders


def test_seconds_per_step_and_timestamps_come_from_the_metadata(load_kind):
    inputs = ask_about_clip(load_kind("qwen2_5_vl"), clip())
    # 5 frames of 4 seconds, two a step.
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 * 4 / 5])
    processor = load_kind("qwen3_vl")
    found = processor.video_processor(clip()[None], video_metadata=[METADATA], return_metadata=True)
    text = processor.replace_video_token(found, video_idx=0)
    times = [part.split(" seconds>")[0] for part in text.split("<") if " seconds>" in part]
    assert times == ["0.5", "2.5", "3.9"]  # means of frames 0 and 9, 20 and 31, 39 and 39


def test_patches_of_qwen_are_cut_as_the_image_processor_cuts_an_image(load_kind):
    """An image is a clip of one frame, which both repeat to fill up a step."""
    processor = load_kind("qwen2_vl")
    frames = clip(1, 40, 70)
    video = processor.video_processor(frames[None], return_tensors="pt")
    image = processor.image_processor(Image.fromarray(frames[0]), return_tensors="pt")
    assert (video["video_grid_thw"] == image["image_grid_thw"]).all()
    assert torch.equal(video["pixel_values_videos"], image["pixel_values"])


def test_steps_of_qwen_hold_their_frames_in_order(load_kind):
    processor = load_kind("qwen2_vl").video_processor
    frames = clip(4, 32, 32)
    rows = processor(frames[None], do_resize=False)["pixel_values_videos"]
    cut = rows.reshape(2, 4, 4, 2, 2, 3, 2, 4, 4)  # t, H, W of tokens, in it, C, frame, patch
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std)
    )
    for t, i, j, a, b, f in np.ndindex(2, 4, 4, 2, 2, 2):
        y, x = (2 * i + a) * 4, (2 * j + b) * 4
        pixels = torch.tensor(frames[2 * t + f, y : y + 4, x : x + 4]).permute(2, 0, 1) / 255
        assert torch.allclose(cut[t, i, j, a, b, :, f], (pixels - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "images"),
    [("llava_next_video", "CLIPImageProcessor"), ("video_llava", "CLIPImageProcessor")],
)
def test_frames_are_resized_and_cropped_as_clip_does_with_images(load_kind, tmp_path, name, images):
    settings = {"image_processor_type": images, **KINDS[name].settings, "do_convert_rgb": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    oracle = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    frames = clip(3, 45, 71)
    expected = oracle([Image.fromarray(frame) for frame in frames], return_tensors="pt")
    found = load_kind(name).video_processor(frames[None], return_tensors="pt")
    assert torch.allclose(found["pixel_values_videos"][0], expected["pixel_values"], atol=1e-6)


def test_several_clips_of_different_lengths(load_kind):
    both = [clip(2), clip(5, 32, 32)]
    rows = load_kind("qwen2_vl").video_processor(both)
    assert rows["video_grid_thw"].tolist() == [[1, 12, 16], [3, 8, 8]]
    padded = load_kind("smolvlm").video_processor(both)
    assert padded["pixel_values"].shape == (2, 5, 3, 32, 32)
    assert padded["pixel_values"][0, 2:].abs().sum() == 0
    assert padded["pixel_values"][1, 4].abs().sum() > 0
    single = load_kind("smolvlm").video_processor([clip(2)])
    assert torch.equal(padded["pixel_values"][0, :2], single["pixel_values"][0])


SMALL = {"size": {"shortest_edge": 3136, "longest_edge": 78400}, "max_video_tokens": 40}


@pytest.mark.parametrize(
    ("kind", "settings", "cap", "shape", "grid"),
    [
        # What the classes of transformers 5.23.0 give with torchvision 0.28.0.
        (Qwen2VLVideoProcessor, {}, False, (2, 10, 10), [1, 24, 24]),
        (Qwen2VLVideoProcessor, {}, False, (5, 360, 640), [3, 26, 46]),
        (Qwen2VLVideoProcessor, {}, False, (40, 240, 320), [20, 20, 28]),
        (Qwen2VLVideoProcessor, SMALL, False, (5, 360, 640), [3, 14, 26]),
        (Qwen2VLVideoProcessor, SMALL, True, (5, 360, 640), [3, 4, 10]),
        (Qwen2VLVideoProcessor, SMALL, True, (33, 480, 640), [17, 2, 4]),
        (Qwen3VLVideoProcessor, {}, False, (2, 10, 10), [1, 16, 16]),
        (Qwen3VLVideoProcessor, {}, False, (8, 96, 96), [4, 8, 8]),
        (Qwen3VLVideoProcessor, {}, False, (33, 480, 640), [17, 8, 10]),
        (Qwen3VLVideoProcessor, {}, True, (33, 480, 640), [17, 20, 26]),
        (Qwen3VLVideoProcessor, SMALL, False, (40, 240, 320), [20, 2, 2]),
        (Qwen3VLVideoProcessor, SMALL, True, (40, 240, 320), [20, 2, 4]),
    ],
)
def test_sizes_are_those_of_transformers(kind, settings, cap, shape, grid):
    frames = np.zeros((1, *shape, 3), np.uint8)
    found = kind(**settings)(frames, cap_pixels_per_frame=cap, do_sample_frames=False)
    assert found["video_grid_thw"].tolist() == [grid]


def test_a_frame_200_times_as_long_as_wide_is_refused(load_kind):
    for name in QWEN:
        with pytest.raises(ValueError, match="200"):
            load_kind(name).video_processor(np.zeros((1, 2, 10, 2010, 3), np.uint8))


def test_grey_and_channels_first_frames_and_lists_are_taken(load_kind):
    processor = load_kind("video_llava").video_processor
    frames = clip(2)
    expected = processor(frames[None])["pixel_values_videos"]
    moved = processor(np.moveaxis(frames, -1, 1)[None])["pixel_values_videos"]
    listed = processor([[Image.fromarray(frame) for frame in frames]])["pixel_values_videos"]
    tensors = processor(torch.from_numpy(frames)[None])["pixel_values_videos"]
    assert torch.equal(expected, moved)
    assert torch.equal(expected, listed)
    assert torch.equal(expected, tensors)


def test_saved_processors_bear_the_names_of_transformers(load_kind, tmp_path):
    load_kind("qwen2_5_vl").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
    again = load_processor(str(tmp_path))
    first, second = (ask_about_clip(p, clip()) for p in (load_kind("qwen2_5_vl"), again))
    assert torch.equal(first["pixel_values_videos"], second["pixel_values_videos"])
    assert torch.equal(first["input_ids"], second["input_ids"])


def test_no_class_of_transformers_is_changed(load_kind):
    for name in KINDS:
        own, theirs = type(load_kind(name)), getattr(transformers, KINDS[name].processor)
        assert own is not theirs
        assert own.check_argument_for_proper_class is not theirs.check_argument_for_proper_class
        assert "check_argument_for_proper_class" not in vars(theirs)


def test_other_parts_are_still_checked(load_kind):
    processor = load_kind("qwen2_vl")
    with pytest.raises(TypeError, match="image_processor"):
        type(processor)("none", processor.tokenizer, processor.video_processor)


def test_a_video_processor_that_only_torchvision_runs_says_so(load_kind):
    with pytest.raises(UnsupportedModelError, match="needs torchvision"):
        ask_about_clip(load_kind("glm4v"), clip())


def test_saving_keeps_the_settings_of_a_video_processor_that_cannot_run(load_kind, tmp_path):
    load_kind("glm4v").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["video_processor"]
    assert saved["patch_size"] == 4
    assert "video_processor_type" not in saved


def test_an_unknown_video_processor_of_a_known_family_is_not_guessed(tmp_path):
    folder = write_folder(tmp_path / "x", KINDS["qwen2_vl"])
    settings = {"video_processor_type": "SomeVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    found = load_processor(str(folder)).video_processor
    assert type(found) is video_processors.NoVideoProcessor


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_paths_and_sampling_are_refused_in_one_line(load_kind, name):
    processor = load_kind(name).video_processor
    with pytest.raises(UnsupportedCallError, match="read_video"):
        processor(["clip.mp4"])
    with pytest.raises(UnsupportedCallError, match="do_sample_frames=False"):
        processor(clip()[None], do_sample_frames=True)


def test_the_class_is_found_without_a_processor_config(tmp_path):
    folder = write_folder(tmp_path / "x", KINDS["qwen2_vl"])
    (folder / "processor_config.json").unlink()
    assert type(load_processor(str(folder))).__name__ == "Qwen2VLProcessor"
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert type(load_processor(str(folder))).__name__ == "Qwen2_5_VLProcessor"


def test_torchvision_that_works_leaves_all_to_transformers(monkeypatch, tmp_path):
    folder = write_folder(tmp_path / "x", KINDS["qwen2_vl"])
    monkeypatch.setattr(processors, "check_torchvision", lambda: True)
    monkeypatch.setattr(
        transformers.AutoProcessor, "from_pretrained", lambda where, **options: (where, options)
    )
    found = load_processor(str(folder), revision="main")
    assert found == (str(folder), {"revision": "main"})


def test_torchvision_that_does_not_import_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(import_utils, "is_torchvision_available", lambda: True)
    folder = write_folder(tmp_path / "x", KINDS["qwen2_vl"])
    with pytest.raises(UnsupportedModelError, match=r"does not import .*uninstall it"):
        load_processor(str(folder))
