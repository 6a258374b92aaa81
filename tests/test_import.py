"""Importing the package changes nothing, and its names are there all the same."""

import json
import subprocess
import sys

import pytest

import vlmcompress


def run(code):
    """Run `code` in a fresh interpreter and read the JSON that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_loads_nothing_heavy_and_leaves_the_environment():
    found = run(
        "import json, os, sys, warnings\n"
        "before = dict(os.environ), list(warnings.filters), list(sys.path)\n"
        "import vlmcompress\n"
        "after = dict(os.environ), list(warnings.filters), list(sys.path)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'typer', 'rich', 'safetensors'}\n"
        "print(json.dumps([before == after, sorted(heavy & set(sys.modules))]))"
    )
    assert found == [True, []]


@pytest.mark.slow
def test_using_the_api_changes_no_registry_of_transformers():
    found = run(
        "import json, os\n"
        "from transformers import AttentionInterface\n"
        "from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks\n"
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as attention\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"
        "def state():\n"
        "    return ([{k: id(r[k]) for k in r.keys()} for r in (masks, attention)],\n"
        "            len(CONFIG_MAPPING.keys()), dict(os.environ))\n"
        "before = state()\n"
        "import vlmcompress\n"
        "for name in vlmcompress.__all__: getattr(vlmcompress, name)\n"
        "vlmcompress.list_methods(), vlmcompress.list_models()\n"
        "print(json.dumps([before == state(), len(before[0][1])]))"
    )
    assert found[0] is True
    assert found[1] >= 3, "the snapshot is of a registry that holds something"


def test_help_imports_neither_torch_nor_transformers():
    found = run(
        "import contextlib, io, json, sys\n"
        "from vlmcompress.cli import main\n"
        "out = io.StringIO()\n"
        "for arguments in (['--help'], ['ask', '--help'], ['ls', '--help'], ['--version']):\n"
        "    sys.argv = ['vlmcompress', *arguments]\n"
        "    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'}\n"
        "print(json.dumps([sorted(heavy & set(sys.modules)), out.getvalue()]))"
    )
    assert found[0] == []
    assert "--overlay" in found[1]


@pytest.mark.parametrize("name", vlmcompress.__all__)
def test_every_public_name_is_there(name):
    assert getattr(vlmcompress, name) is not None
    assert name in dir(vlmcompress)


def test_unknown_name():
    with pytest.raises(AttributeError, match=r"'vlmcompress' has no attribute 'nothing'"):
        vlmcompress.nothing  # noqa: B018
