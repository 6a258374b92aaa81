"""What pyright says of public names, made up."""

import json
import sys

import pytest

import vlmcompress
from dev import public_types


def symbol(name, known=True, ambiguous=False, messages=()):
    return {
        "name": name,
        "isTypeKnown": known,
        "isTypeAmbiguous": ambiguous,
        "diagnostics": [{"message": message} for message in messages],
    }


@pytest.fixture
def symbols():
    names = [f"vlmcompress.{name}" for name in vlmcompress.__all__]
    names += [f"vlmcompress.{home}.{name}" for name, home in vlmcompress._HOME.items()]
    return [symbol(name) for name in names]


def report(symbols):
    return {"typeCompleteness": {"completenessScore": 0.875, "symbols": symbols}}


def test_unknown_types_of_public_names_and_members_count(symbols, tmp_path, monkeypatch, capsys):
    symbols += [
        symbol("vlmcompress.api.Compression.model", False, messages=["Type is unknown\n more"]),
        symbol("vlmcompress.api.Compression.report", False, ambiguous=True),
        symbol("vlmcompress.patches.engine.Engine.now", False),
    ]
    path = tmp_path / "types.json"
    path.write_text(json.dumps(report(symbols)))
    monkeypatch.setattr(sys, "argv", ["public_types", str(path)])
    with pytest.raises(SystemExit) as ended:
        public_types.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "vlmcompress.api.Compression.model: Type is unknown",
        "1 public names of unknown type; all of the package: 87.5 %",
    ]


def test_nothing_unknown_is_fine(symbols):
    assert public_types.unknown(report(symbols)) == []


def test_a_report_without_a_public_name_is_refused(symbols):
    with pytest.raises(ValueError, match=r"vlmcompress\.api\.compress"):
        public_types.unknown(report([one for one in symbols if "api.compress" not in one["name"]]))
