"""Questions about a folder of pictures and clips."""

import json

import numpy as np
import pytest
from clip_files import write_clip
from PIL import Image

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.tuning.samples import CLIPS, PICTURES, in_batches, read_samples


@pytest.fixture
def folder(tmp_path):
    """Three pictures, a clip, and something else."""
    media = tmp_path / "media"
    media.mkdir()
    for number in range(3):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(media / f"{number}.png")
    write_clip(media / "clip.mp4", 8, (32, 32))
    (media / "notes.txt").write_text("not a picture")
    return media


def names(samples):
    return [sample.extra.rpartition("/")[2] for sample in samples]


def test_every_file_is_asked_about_before_any_again(folder):
    samples = read_samples(folder, None, 100, 0)
    files = {"0.png", "1.png", "2.png", "clip.mp4"}
    assert len(samples) == 4 * len(PICTURES) == 4 * len(CLIPS)
    assert {frozenset(names(samples)[at : at + 4]) for at in range(0, 32, 4)} == {frozenset(files)}
    pairs = {(name, one.question) for name, one in zip(names(samples), samples, strict=True)}
    assert len(pairs) == 32, "never the same question twice"
    for sample in samples:
        assert sample.question in (CLIPS if sample.kind == "video" else PICTURES)
        assert sample.answers == ()
    assert [sample.index for sample in samples] == list(range(32))
    assert names(read_samples(folder, None, 3, 0)) == names(samples)[:3]


def test_the_seed_is_of_the_order(folder):
    found = [names(read_samples(folder, None, 4, seed)) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len({tuple(order) for order in found}) > 1


def test_questions_alone_are_asked_about_the_folder(folder, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "who ?"}\n\n{"question": "what ?"}\n')
    samples = read_samples(folder, asked, 100, 0)
    assert len(samples) == 8
    assert {sample.question for sample in samples} == {"who ?", "what ?"}


def test_rows_that_name_their_pictures(folder, tmp_path):
    rows = [
        {"image": "0.png", "question": "one ?"},
        {"images": ["1.png", "2.png"], "question": "two ?"},
        {"video": "clip.mp4", "question": "moving ?"},
    ]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = {one.question: one for one in read_samples(folder, asked, 100, 0)}
    assert [len(samples[text].load()) for text in ("one ?", "two ?", "moving ?")] == [1, 2, 1]
    assert samples["moving ?"].kind == "video"
    assert len(samples["moving ?"].load()[0].frames) == 8
    few = {one.question: one for one in read_samples(folder, asked, 100, 0, frames=2)}
    assert len(few["moving ?"].load()[0].frames) == 2
    beside = folder / "asked.jsonl"
    beside.write_text(asked.read_text())
    assert len(read_samples(None, beside, 2, 0)) == 2


def test_batches_hold_one_medium_and_keep_the_order(folder):
    samples = read_samples(folder, None, 100, 0)
    batches = in_batches(samples, 5)
    assert all(len({one.kind for one in batch}) == 1 for batch in batches)
    for kind in ("image", "video"):
        flat = [one.index for batch in batches for one in batch if one.kind == kind]
        assert flat == [one.index for one in samples if one.kind == kind]
    assert [len(batch) for batch in in_batches(samples[:1], 5)] == [1]
    first = [batch[0].kind for batch in batches]
    assert "video" in first[: len(first) // 2 + 1], "clips are not left to the end"


def test_mistakes(folder, tmp_path):
    def refuses(match, *given):
        with pytest.raises(VLMCompressError, match=match) as caught:
            read_samples(*given, 10, 0)
        assert len(str(caught.value).splitlines()) == 1

    asked = tmp_path / "asked.jsonl"
    refuses("is no folder", tmp_path / "none", None)
    refuses("nothing to ask about: give --media", None, None)
    refuses(r"must end in \.jsonl or \.csv", folder, tmp_path / "asked.txt")
    (tmp_path / "empty").mkdir()
    refuses("there is no picture and no video", tmp_path / "empty", None)
    asked.write_text("")
    refuses("has no rows", folder, asked)
    asked.write_text('{"question": "who ?"}\n{"image": "0.png", "question": "who ?"}\n')
    refuses("1 of 2 rows name a picture or clip", folder, asked)
    asked.write_text('{"question": 7}\n')
    refuses("line 1: field 'question' must be a text", folder, asked)
    asked.write_text('{"question": "who ?"}\n')
    refuses("nothing to ask about: give --media", None, asked)
    asked.write_text('{"image": "none.png", "question": "who ?"}\n')
    refuses("none.png", folder, asked)


def test_a_damaged_picture_is_found_when_it_is_read(folder):
    (folder / "0.png").write_bytes(b"no picture")
    bad = next(one for one in read_samples(folder, None, 4, 0) if one.extra.endswith("0.png"))
    with pytest.raises(MediaError):
        bad.load()
