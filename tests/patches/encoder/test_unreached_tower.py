"""A vision tower that runs past the hooks, as compiled code would, is no silent loss."""

import pytest
import torch
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.encoder.packed_merging import PackedTowerMerging
from vlmcompress.patches.encoder.patch_dropping import PackedTower
from vlmcompress.patches.encoder.tile_merging import TileTowerMerging
from vlmcompress.patches.encoder.tile_tower import TileTowerDropping
from vlmcompress.patches.signals.tower_hooks import TowerHooks

TOWERS = (PackedTower, PackedTowerMerging, TileTowerDropping, TileTowerMerging)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("random llava", "unit-drop"),
        ("random llava", "tome"),
        ("random llava", "hiprune"),
        ("random qwen2.5-vl", "unit-drop"),
        ("random qwen2.5-vl", "tome"),
        ("random qwen2.5-vl", "pixelprune"),
        ("random qwen2.5-vl", "visionzip"),
    ],
)
@torch.no_grad()
def test_the_call_says_so(name, method, monkeypatch):
    subject = SUBJECTS[name]()
    batch = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch)
    for reaching in (*TOWERS, TowerHooks):
        monkeypatch.setattr(reaching, "hook", lambda self, attached: None)
    with (
        compress(subject.model, method, budget="50%"),
        pytest.raises(UnsupportedCallError, match=rf"{method} could not .* torch.compile"),
    ):
        subject.model(**batch)
