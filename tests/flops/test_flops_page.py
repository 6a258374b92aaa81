"""docs/flops.md: its example prints what it shows, and its table holds every convention."""

import re
from pathlib import Path

import vlmcompress
from vlmcompress.flops.paper_conventions import CONVENTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "flops.md").read_text()


def test_the_example_prints_what_the_page_shows(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/flops.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_every_convention_and_name_is_told():
    told = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    assert [name for name in told if name in CONVENTIONS] == list(CONVENTIONS)
    for name in ("DecoderShape", "prefill_flops", "kv_bytes"):
        assert f"| `{name}" in PAGE
        assert name in vlmcompress.__all__
