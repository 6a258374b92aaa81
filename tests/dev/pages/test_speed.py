"""docs/speed.md is what the committed figures say."""

import json

from dev.pages import speed as speed_page


def test_the_page_is_up_to_date():
    assert speed_page.PAGE.read_text() == speed_page.page()


def test_kernels_get_a_table_once_a_gpu_has_run_them(monkeypatch, tmp_path):
    monkeypatch.setattr(speed_page, "RESULTS", tmp_path)
    assert "no figure of one exists" in speed_page.gpu()
    made_on = {"device": "H100", "threads": 16, "date": "d", "command": "c"}
    made_on["versions"] = {"torch": "2", "transformers": "5"}
    row = {"op": "take", "shape": "s", "torch": {"ms": 2.0}, "triton": {"ms": 0.5}}
    row |= {"floor_ms": None, "times_as_fast": 4.0}
    content = {"provenance": made_on, "rows": [row]}
    (tmp_path / "kernels_gpu.json").write_text(json.dumps(content))
    assert "| `take` | s | 2 | 0.5 | - | 4.00 |" in speed_page.gpu()
