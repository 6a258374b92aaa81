"""Tables are read once: methods are made and asked for every image."""

from __future__ import annotations

import torch

from vlmcompress.methods.embedlens import EmbedLens, write_table
from vlmcompress.methods.shared.published_tables import published
from vlmcompress.tokens import Grid, VisualTokens


def test_a_shipped_table_is_read_once(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"a": 1}')
    assert published(path) == {"a": 1}
    path.unlink()
    assert published(path) == {"a": 1}


def test_a_method_reads_its_own_table_once(tmp_path):
    path = tmp_path / "words.json"
    write_table(path, {"sink": [0], "dead": [1]}, origin="a test")
    method = EmbedLens(table=str(path), nearest=1)
    path.unlink()
    shown = VisualTokens(torch.eye(4), Grid(1, 2, 2), vocabulary=torch.eye(4))
    assert method.select(shown, 2).tolist() == [2, 3]
