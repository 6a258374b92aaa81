"""How tiny-qwen is trained: what training sees is what inference through the processor meets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

import vlmcompress
from dev.training.llava.packed_questions import SEGMENT_LENGTH, UNSCORED
from dev.training.qwen.data import (
    TOKENS,
    as_pairs,
    as_patches,
)
from dev.training.qwen.decoder import Answerer
from dev.training.qwen.lessons import (
    AFTER,
    BEFORE,
    pack_words,
    pose_clip,
    positions,
    prefix_length,
)
from dev.training.qwen.model import IDS, SPECIAL, make_config, make_tokenizer, vocabulary
from dev.training.qwen.tower import Tower
from vlmcompress.eval.tasks.from_worlds import WORLDS
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, ask_clip
from vlmcompress.eval.worlds.clips import FRAMES_PER_STEP, STEPS, make_clip, render_clip
from vlmcompress.eval.worlds.world import KINDS, Question, ask, make_scene, render
from vlmcompress.prompts import prepare

ASSETS = Path(vlmcompress.__file__).parent / "assets"


def inputs_of(loaded, world, seen, question):
    """What the processor makes of a scene, or a clip, and a question about it."""
    return prepare(*loaded, [(WORLDS[world].load(seen), question.text)])


def clip_and_question(kind, seed=0):
    while (question := ask_clip(make_clip(seed), kind, np.random.default_rng(seed))) is None:
        seed += 1
    return make_clip(seed), question


def test_every_word_of_every_clip_question_is_known():
    tokenizer = make_tokenizer()
    assert len(set(vocabulary())) == len(vocabulary())
    for seed in range(120):
        for kind in CLIP_KINDS:
            question = ask_clip(make_clip(seed), kind, np.random.default_rng(seed))
            if question is not None:
                ids = tokenizer(f"{question.text} {question.answer}")["input_ids"]
                assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]


def test_training_patches_are_those_of_the_processor_for_pictures_and_clips(tiny_qwen):
    scene, (clip, question) = make_scene(3), clip_and_question("motion")
    frames = render_clip(clip)[0]
    picture = inputs_of(tiny_qwen, "pictures", scene, question)
    moving = inputs_of(tiny_qwen, "clips", clip, question)
    for seen, inputs, name in (
        (as_pairs(render(scene)[0][None]), picture, "pixel_values"),
        (frames[None], moving, "pixel_values_videos"),
    ):
        patches = as_patches(seen).float()
        torch.testing.assert_close(patches, inputs[name], atol=5e-3, rtol=0)
    assert picture["image_grid_thw"].tolist() == [[1, 12, 12]]
    assert moving["video_grid_thw"].tolist() == [[STEPS, 12, 12]]
    backwards = as_patches(frames[None, ::-1].copy()).float()
    assert (backwards - moving["pixel_values_videos"]).abs().max() > 0.5


@pytest.mark.parametrize("moving", [False, True], ids=["picture", "clip"])
def test_training_tokens_and_positions_are_those_of_the_processor_and_model(tiny_qwen, moving):
    if moving:
        clip, question = clip_and_question("order")
        inputs, steps = inputs_of(tiny_qwen, "clips", clip, question), STEPS
    else:
        scene = make_scene(3)
        question = ask(scene, "color", np.random.default_rng(0))
        inputs, steps = inputs_of(tiny_qwen, "pictures", scene, question), 1
    ids = inputs["input_ids"][0].tolist()
    visual = IDS[SPECIAL["video" if moving else "image"]]
    cut = prefix_length(steps)
    before, after = ([IDS[word] for word in words] for words in (BEFORE, AFTER))
    assert ids[:cut] == before + [visual] * (steps * TOKENS) + after
    batch = pack_words([[question]])
    prompt = len(ids) - cut
    assert ids[cut:] == batch.tokens[0, 0, :prompt].tolist()
    wanted = batch.wanted[0, 0]
    words = [IDS[word] for word in [*question.answer.split(), SPECIAL["end"]]]
    assert wanted[wanted != UNSCORED].tolist() == words
    assert wanted[prompt - 1] == words[0]
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(make_config()).model
    expected, _ = model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs.get("second_per_grid_ts"),
        inputs["attention_mask"],
    )
    assert torch.equal(expected, positions(steps, 2)[:, :, : len(ids)])
    second = positions(steps, 2)[:, :, cut + SEGMENT_LENGTH :]
    assert torch.equal(second[..., :prompt], expected[..., cut:])


def test_the_tower_of_training_is_the_one_of_transformers():
    torch.manual_seed(0)
    tower = Tower()
    pixels = np.random.default_rng(0).integers(0, 256, (3, FRAMES_PER_STEP, 96, 96, 3), np.uint8)
    patches = as_patches(pixels).float()
    plain = Qwen2_5_VisionTransformerPretrainedModel(make_config().vision_config)
    plain.load_state_dict(tower.visual.state_dict())
    with torch.no_grad():
        states, tokens = tower(patches)
        expected = plain(patches, grid_thw=torch.tensor([[1, 12, 12]] * 3)).pooler_output
        torch.testing.assert_close(tokens.flatten(0, 1), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(plain.merger.mlp(states), tokens, atol=1e-5, rtol=0)
        plain.fullatt_block_indexes = range(6)
        other = plain(patches, grid_thw=torch.tensor([[1, 12, 12]] * 3)).pooler_output
    assert (other - expected).abs().max() > 1e-2


@pytest.fixture(scope="module")
def answerer():
    torch.manual_seed(0)
    return Answerer(Tower().visual.state_dict(), ASSETS / "tiny_llava")


def test_the_decoder_starts_as_that_of_tiny_llava_behind_a_layer_that_does_nothing(
    answerer, tiny_llava
):
    ours, theirs = answerer.qwen.model.language_model, tiny_llava[0].model.language_model
    assert len(ours.layers) == len(theirs.layers) + 1
    for layer, source in zip(ours.layers[1:], theirs.layers, strict=True):
        state = layer.state_dict()
        assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())
    old = tiny_llava[1].tokenizer.convert_tokens_to_ids("circle")
    assert torch.equal(ours.embed_tokens.weight[IDS["circle"]], theirs.embed_tokens.weight[old])
    visual = torch.randn(1, TOKENS, 160)
    record = {"record": {}, "record_prefix": {}}
    question = Question("color", 0, "what color is the circle ?", "red", (0,))
    with torch.no_grad():
        answerer(visual, pack_words([[question]]), record)
    torch.testing.assert_close(record["hidden"], visual)


def test_many_questions_in_training_are_answered_as_each_alone_by_the_model(answerer):
    torch.manual_seed(1)
    for layer in answerer.qwen.model.language_model.layers[:1]:
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.1)
    visual = torch.randn(1, STEPS * TOKENS, 160)
    clip, _ = clip_and_question("motion")
    questions = pose_clip(clip, np.random.default_rng(0), [1.0] * 3)[:3]
    batch = pack_words([questions])
    with torch.no_grad():
        together, wanted = answerer(visual, batch)
        language = answerer.qwen.model.language_model
        for number in range(3):
            length = prefix_length(STEPS) + SEGMENT_LENGTH
            embed = language.embed_tokens
            words = [torch.tensor([[IDS[word] for word in part]]) for part in (BEFORE, AFTER)]
            inputs = [embed(words[0]), visual, embed(words[1]), embed(batch.tokens[:, number])]
            language.config._attn_implementation = "eager"
            hidden = language(
                inputs_embeds=torch.cat(inputs, dim=1),
                position_ids=positions(STEPS, 1)[:, :, :length],
            ).last_hidden_state[0, -SEGMENT_LENGTH:]
            language.config._attn_implementation = "segments"
            alone = answerer.qwen.lm_head(hidden[batch.wanted[0, number] != UNSCORED])
            torch.testing.assert_close(
                together[2 * number : 2 * number + 2], alone, atol=1e-4, rtol=1e-4
            )
    assert (together[0] - together[2]).abs().max() > 1e-3
    assert len(wanted) == 6


def test_every_picture_question_is_packed_in_this_models_words():
    for seed in range(30):
        for kind in KINDS:
            question = ask(make_scene(seed), kind, np.random.default_rng(seed))
            if question is not None:
                assert (pack_words([[question]]).tokens != IDS[SPECIAL["unknown"]]).all()
