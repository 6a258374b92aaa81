"""small-llava: how it is trained, at toy size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dev.training.llava.data import IGNORED
from dev.training.llava.model import vocabulary as tiny_vocabulary
from dev.training.llava.packed_questions import PREFIX, SEGMENT_LENGTH, pack, positions
from dev.training.llava.tower import as_input
from dev.training.optim import TrainingRun
from dev.training.small.clip_text_tower import train_clip
from dev.training.small.data import (
    COLOR,
    FIELDS,
    GLYPH,
    HEIGHT,
    KIND,
    MIDDLE,
    ORDER,
    OWNER,
    PATCHES,
    PLACE,
    ROWS,
    TAGS,
    label_poster,
    prepare_posters,
    tags_of,
)
from dev.training.small.decoder import Memory, make_answerer, train_decoder
from dev.training.small.lessons import (
    SEGMENTS,
    choose_patches,
    make_targets,
    naming_words,
    pose_posters,
)
from dev.training.small.model import (
    IDS,
    small_config,
    small_processor,
    start_tower,
    tiny_weights,
    vocabulary,
)
from dev.training.small.tower import (
    QUARTER,
    LabelledTower,
    all_patches,
    cut_quarters,
    train_tower,
)
from vlmcompress.eval.worlds.posters.draw import SIDE, draw_poster, render_poster
from vlmcompress.eval.worlds.posters.poster import make_poster, patches_of
from vlmcompress.eval.worlds.posters.questions import POSTER_KINDS, ask_poster
from vlmcompress.models.names import ASSETS

EVEN = [1 / len(POSTER_KINDS)] * len(POSTER_KINDS)
POSTERS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def posters(folder):
    return prepare_posters(folder / "data", POSTERS, workers=1)


@pytest.fixture(scope="module")
def tiny():
    return tiny_weights(ASSETS / "tiny_llava")


def labelled(seed):
    poster = make_poster(seed)
    return poster, label_poster(poster, render_poster(poster)[1])


def test_every_word_is_known_and_those_of_tiny_llava_keep_their_ids():
    words = vocabulary()
    assert words[: len(tiny_vocabulary())] == tiny_vocabulary()
    assert len(set(words)) == len(words) > len(tiny_vocabulary()) + 80
    tokenizer = small_processor().tokenizer
    for seed in range(60):
        for kind in POSTER_KINDS:
            question = ask_poster(make_poster(seed), kind, np.random.default_rng(seed))
            if question is not None:
                ids = tokenizer(f"{question.text} {question.answer}")["input_ids"]
                assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]


def test_the_processor_gives_what_training_saw():
    processor = small_processor()
    poster = make_poster(3)
    question = ask_poster(poster, "place", np.random.default_rng(0))
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[draw_poster(poster)], return_tensors="pt")
    batch = pack([[question]], IDS, every_kind=POSTER_KINDS)
    ids = inputs["input_ids"][0].tolist()
    before = [IDS[word] for word in PREFIX] + [IDS["<image>"]] * PATCHES
    assert ids[: len(before)] == before
    assert ids[len(before) :] == batch.tokens[0, 0, : len(ids) - len(before)].tolist()
    seen = as_input(render_poster(poster)[0][None]).float()
    torch.testing.assert_close(seen, inputs["pixel_values"], atol=5e-3, rtol=0)
    wide = processor(text=[prompt], images=[Image.new("RGB", (300, 200))], return_tensors="pt")
    assert wide["pixel_values"].shape == (1, 3, 192, 192)


def test_labels_say_what_lies_where():
    bars = 0
    for seed in range(60):
        poster, labels = labelled(seed)
        assert labels.shape == (ROWS, SIDE, SIDE)
        assert (labels[MIDDLE] == 1).sum() == len(poster.items)
        for number, item in enumerate(poster.items, start=1):
            own = labels[:, labels[OWNER] == number]
            assert set(own[KIND]) == {FIELDS["kind"].index(item.kind) + 1}
            color = 0 if item.color is None else FIELDS["color"].index(item.color) + 1
            assert set(own[COLOR]) == {color}
            assert set(own[PLACE]) == {FIELDS["place"].index(item.place) + 1}
            spots = patches_of(item.plate) if item.plate else ()
            for order, spot in enumerate(spots, 1):
                sign = item.plate.text[order - 1]
                assert (labels[GLYPH][spot] == FIELDS["glyph"].index(sign) + 1).all()
                assert (labels[ORDER][spot] == order).all()
                assert (labels[OWNER][spot] == number).all()
            assert (own[GLYPH] > 0).any() == (item.plate is not None)
        for number, bar in enumerate(poster.chart.bars if poster.chart else (), 1):
            own = labels[:, labels[OWNER] == len(poster.items) + number]
            assert own.shape[1] == bar.value
            assert set(own[HEIGHT]) == {bar.value}
            bars += 1
    assert bars > 30


def test_tags_say_what_a_picture_shows():
    poster, labels = labelled(4)
    tags = tags_of(labels.reshape(1, ROWS, -1))[0]
    assert len(tags) == TAGS
    kinds, colors = len(FIELDS["kind"]), len(FIELDS["color"])
    shown = {FIELDS["kind"][index] for index in np.flatnonzero(tags[:kinds])}
    assert shown == {item.kind for item in poster.items} | ({"bar"} if poster.chart else set())
    pairs = {(index % 6, index // 6) for index in np.flatnonzero(tags[kinds + colors :])}
    assert pairs == {
        (FIELDS["kind"].index(item.kind), FIELDS["color"].index(item.color))
        for item in poster.items
        if item.color
    }


def test_quarters_are_cut_along_cells_and_do_not_ask_for_what_is_cut(posters):
    rows = np.arange(12)
    cut_off = kept_charts = 0
    for seed in range(8):
        pixels, labels, patches = cut_quarters(posters, rows, np.random.default_rng(seed))
        for row in rows:
            top, left = divmod(int(patches[row, 0]), SIDE)
            assert top % 4 == left % 4 == 0
            y, x = 8 * top, 8 * left
            assert np.array_equal(pixels[row], posters.pixels[row, y : y + 96, x : x + 96])
            whole = posters.labels[row].reshape(ROWS, -1)[:, patches[row]]
            changed = labels[row] != whole
            assert (labels[row][changed] == IGNORED).all()
            there = set(whole[OWNER][whole[MIDDLE] == 1])
            for owner in set(whole[OWNER]) - {0}:
                own = whole[OWNER] == owner
                if (whole[KIND][own] != len(FIELDS["kind"])).all():
                    known = (labels[row][KIND][own] > 0).all()
                    assert known == (owner in there)
                    cut_off += owner not in there
            bars = (posters.labels[row][KIND] == len(FIELDS["kind"])).sum()
            seen = (whole[KIND] == len(FIELDS["kind"])).sum()
            if seen:
                assert ((labels[row][HEIGHT] > 0).sum() == bars) == (seen == bars)
                kept_charts += seen == bars
    assert min(cut_off, kept_charts) > 5


def test_the_tower_in_training_is_the_tower_of_the_model(posters, tiny):
    torch.manual_seed(0)
    model = LabelledTower(start_tower(tiny, SIDE))
    pixels = as_input(posters.pixels[:2]).float()
    with torch.no_grad():
        patches, tags = model(pixels, all_patches(2))
        out = model.tower(pixels, output_hidden_states=True)
        torch.testing.assert_close(patches, model.patch_head(out.hidden_states[-2][:, 1:]))
        torch.testing.assert_close(tags, model.tag_head(out.pooler_output))
        quarter = all_patches(2).reshape(2, SIDE, SIDE)[:, :QUARTER, :QUARTER].flatten(1)
        corner, _ = model(pixels[:, :, :96, :96], quarter)
        moved, _ = model(pixels[:, :, :96, :96], quarter + QUARTER)
        assert corner.shape == (2, QUARTER * QUARTER, patches.shape[-1])
        assert not torch.allclose(corner, moved, atol=1e-3)


def test_the_tower_starts_from_tiny_llava_with_stretched_positions(tiny):
    start = start_tower(tiny, SIDE)
    name = "embeddings.position_embedding.weight"
    table, old = start[name], tiny[f"model.vision_tower.{name}"]
    assert table.shape == (1 + PATCHES, old.shape[1])
    assert torch.equal(table[0], old[0])
    assert torch.allclose(table[1], old[1])  # the corner
    assert torch.equal(
        start["encoder.layers.0.mlp.fc1.weight"],
        tiny["model.vision_tower.encoder.layers.0.mlp.fc1.weight"],
    )


def test_the_decoder_starts_from_tiny_llava(tiny):
    model = make_answerer(start_tower(tiny, SIDE), tiny).llava
    own = model.state_dict()
    name = "model.language_model.embed_tokens.weight"
    for key, value in tiny.items():
        if key.startswith(("model.language_model.layers.", "model.multi_modal_projector.")):
            assert torch.equal(own[key], value)
    words = own[name]
    assert torch.equal(words[: len(tiny[name])], tiny[name])
    assert torch.equal(words[IDS["figure"]], words[IDS["object"]])
    steps = [words[IDS[f"{one}s"]] - words[IDS[one]] for one in ("apple", "car")]
    assert torch.allclose(*steps, atol=1e-5)
    assert not torch.allclose(words[IDS["apple"]], words[IDS["car"]])


def test_patches_that_are_left_out_leave_all_others_where_they_were():
    kept = torch.tensor([[0, 5, 575]])
    ids = positions(kept, PATCHES, 2)[0]
    first = len(PREFIX)
    assert ids[: first + 3].tolist() == [0, 1, 2, first, first + 5, first + 575]
    text = list(range(first + PATCHES, first + PATCHES + SEGMENT_LENGTH))
    assert ids[first + 3 :].tolist() == text * 2


def test_patches_of_items_are_kept_first():
    labels = np.stack([labelled(seed)[1].reshape(ROWS, -1) for seed in range(6)])
    kept = choose_patches(labels, 160, np.random.default_rng(0))
    assert kept.shape == (6, 160)
    assert (np.diff(kept) > 0).all()
    for row, chosen in zip(labels, kept, strict=True):
        assert set(np.flatnonzero(row[OWNER] > 0)) <= set(chosen)


def test_all_questions_fit_a_segment():
    for seed in range(80):
        asked = pose_posters(make_poster(seed), np.random.default_rng(seed), EVEN)
        assert len(asked) == SEGMENTS
        assert int((pack([asked], IDS, every_kind=POSTER_KINDS).tokens > 0).sum(-1).max()) <= 16


@pytest.mark.parametrize("kind", POSTER_KINDS)
def test_attention_is_wanted_on_what_the_question_is_about(kind):
    told = 0
    for seed in range(80):
        poster, labels = labelled(seed)
        question = ask_poster(poster, kind, np.random.default_rng(seed))
        if question is None:
            continue
        words = question.text.split()
        assert len(naming_words(question)) == (2 if kind == "relation" else 1), question.text
        flat = labels.reshape(1, ROWS, -1)
        targets = make_targets([poster], [[question]], flat)
        assert torch.allclose(targets.wanted.sum(-1), torch.ones(len(targets.rows)))
        first_bar = len(poster.items) if kind == "chart" else 0
        owners = [first_bar + index + 1 for index in question.about]
        for place, wanted, answers in zip(
            targets.queries.tolist(), targets.wanted.numpy(), targets.answering, strict=True
        ):
            assert answers == (place > len(words))
            looked = np.flatnonzero(wanted[len(PREFIX) :])
            assert set(flat[0, OWNER][looked]) <= set(owners)
            assert (len(looked) > 0) == bool(owners)
            told += 1
            if kind == "count":
                assert len(looked) == len(owners)
                assert wanted[0] == pytest.approx(1 / (len(owners) + 1))
            if kind in ("reading", "list") and answers:
                sign = question.answer.split()[place - len(words) - 1]
                assert set(flat[0, GLYPH][looked]) == {FIELDS["glyph"].index(sign) + 1}
    assert told > 30


def test_a_quarter_of_a_batch_is_new_and_lists_are_drawn_more_often(posters, tmp_path):
    memory = Memory(SimpleNamespace(), posters, tmp_path)
    rng = np.random.default_rng(0)
    assert len(set(memory.draw(rng, 8))) == 8  # nothing is known yet
    memory.known[: POSTERS // 2] = 1
    drawn = np.concatenate([memory.draw(rng, 8) for _ in range(200)])
    assert np.mean(drawn >= POSTERS // 2) == 0.25
    lists = {s for s in range(POSTERS) if any(one.in_list for one in make_poster(s).items)}
    often = np.bincount(drawn, minlength=POSTERS)[: POSTERS // 2]
    with_list = [often[s] for s in range(POSTERS // 2) if s in lists]
    without = [often[s] for s in range(POSTERS // 2) if s not in lists]
    assert np.mean(with_list) > 1.5 * np.mean(without) > 0


def run(folder, minutes, log):
    return TrainingRun(folder, minutes, 0, log.append)


def test_all_stages_run_go_on_and_give_a_model_that_loads(folder, posters, tiny):
    log = []
    tower = train_tower(tiny, posters, run(folder, 0.01, log))
    assert torch.isfinite(tower["embeddings.position_embedding.weight"]).all()
    assert not torch.equal(
        tower["embeddings.position_embedding.weight"],
        start_tower(tiny, SIDE)["embeddings.position_embedding.weight"],
    )
    again = train_tower(tiny, posters, run(folder, 0.01, log))
    assert all(torch.equal(tower[name], again[name]) for name in tower)

    published = []
    train_decoder(tower, tiny, posters, run(folder, 0.01, log), published.append)
    known = Memory(SimpleNamespace(), posters, folder / "data").known
    assert 0 < known.sum() <= POSTERS
    from transformers import LlavaForConditionalGeneration

    from dev.training.llava.model import fill

    fill(LlavaForConditionalGeneration(small_config()), published[-1])

    clip = train_clip(tower, ASSETS / "tiny_clip", posters, run(folder, 0.01, log))
    assert torch.equal(clip["vision_model.pre_layrnorm.weight"], tower["pre_layrnorm.weight"])
    assert [line.split()[0] for line in log] == ["small-tower", "small-decoder", "small-clip"]
