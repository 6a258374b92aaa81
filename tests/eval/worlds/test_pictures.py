"""Pictures of the synthetic world: they show what the scene says, and small things stay small."""

from dataclasses import replace

import numpy as np
import pytest

from vlmcompress.eval.worlds.world import make_scene, render


def test_the_picture_of_a_scene_never_changes_unnoticed():
    # Pictures of other bytes are another world: VERSION must go up and the models be trained anew.
    # A sum, and not a hash, because another NumPy may round single pixels otherwise.
    total = sum(int(render(make_scene(seed))[0].astype(np.int64).sum()) for seed in range(20))
    assert total == pytest.approx(68_563_242, rel=1e-4)


def test_every_object_is_visible_against_its_background():
    for seed in range(100):
        scene = make_scene(seed)
        picture, cover = render(scene)
        bare = np.array(scene.background)
        for thing in cover:
            row, column = np.unravel_index(thing.argmax(), thing.shape)
            patch = picture[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].reshape(-1, 3)
            assert np.abs(patch.astype(int) - bare).max() > 40


@pytest.mark.parametrize("field", ["color", "glyph", "shape"])
def test_the_picture_changes_with_what_the_scene_says(field):
    other = {"color": "red", "glyph": "8", "shape": "star"}
    seen = 0
    for seed in range(40):
        scene = make_scene(seed)
        thing = scene.objects[0]
        if getattr(thing, field) in (other[field], None):
            continue
        first = replace(thing, **{field: other[field]})
        changed = replace(scene, objects=(first, *scene.objects[1:]))
        difference = np.abs(render(scene)[0].astype(int) - render(changed)[0].astype(int)).sum(-1)
        rows, columns = np.nonzero(difference)
        assert len(rows) >= 3
        assert np.hypot(rows - thing.y, columns - thing.x).max() < 1.3 * thing.radius + 2
        seen += 1
    assert seen > 5


def test_signs_lie_within_one_patch():
    for seed in range(60):
        scene = make_scene(seed)
        for index, thing in enumerate(scene.objects):
            if thing.glyph is None:
                continue
            things = list(scene.objects)
            things[index] = replace(thing, glyph=None)
            bare = replace(scene, objects=tuple(things))
            changed = np.argwhere((render(scene)[0] != render(bare)[0]).any(-1)) // 8
            assert len(np.unique(changed, axis=0)) == 1


def test_tokens_of_a_quarter_hide_small_objects():
    """A small object must be able to vanish when three of four patches are dropped at random."""
    patches = [
        int((cover[index] > 0.12).sum())
        for seed in range(100)
        for scene in [make_scene(seed)]
        for _, cover in [render(scene)]
        for index, thing in enumerate(scene.objects)
        if thing.size == "small"
    ]
    assert np.mean(np.array(patches) <= 4) > 0.9
    assert max(patches) <= 6
