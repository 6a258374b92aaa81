"""The three ways in which the layout of style guide B can rot, and what the metadata promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vlmcompress

ROOT = Path(__file__).parents[1]
if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
else:
    PROJECT = None
needs_toml = pytest.mark.skipif(PROJECT is None, reason="tomllib comes with Python 3.11")


def packages_in(folder, name):
    """Dotted names of the packages below `folder`, without following links."""
    found = {name} if (folder / "__init__.py").is_file() else set()
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            found |= packages_in(child, f"{name}.{child.name}")
    return found


@needs_toml
def test_packages_are_the_folders_that_have_an_init():
    there = packages_in(ROOT / "vlmcompress", "vlmcompress")
    for side in ("patches", "eval"):
        there |= packages_in(ROOT / side, f"vlmcompress.{side}")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there


@needs_toml
def test_package_data_matches_files():
    """Each pattern ships something, and each file that is no code is shipped by a pattern."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = set()
    for package, globs in patterns.items():
        folder = ROOT / package.replace(".", "/")
        for glob in globs:
            hits = {path.resolve() for path in folder.glob(glob) if path.is_file()}
            # Before Python 3.13 a final ** matches folders only.
            if glob.endswith("**"):
                hits = {path.resolve() for path in folder.glob(f"{glob}/*") if path.is_file()}
            assert hits, f"{glob} in {package} ships nothing"
            shipped |= hits
    listing = subprocess.run(
        ["git", "ls-files", "vlmcompress", "patches", "eval"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    tracked = {(ROOT / line) for line in listing.stdout.splitlines()}
    data = {path.resolve() for path in tracked if path.suffix != ".py" and not path.is_symlink()}
    assert data <= shipped


@pytest.mark.parametrize("name", ["patches", "eval"])
def test_links_point_to_the_top_folders(name):
    link = ROOT / "vlmcompress" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


@pytest.mark.slow
def test_no_top_level_patches_or_eval_is_loaded():
    code = (
        "import sys, vlmcompress, vlmcompress.eval\n"
        "for name in vlmcompress.__all__: getattr(vlmcompress, name)\n"
        "vlmcompress.list_models()\n"
        "assert 'vlmcompress.patches' in sys.modules\n"
        "print(sorted({'patches', 'eval', 'tests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_toml
def test_constraints_pin_torch_first_and_cover_the_dependencies():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    pinned = {re.split(r"==", pin)[0].lower() for pin in pins}
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert extras["dev"][0] == "vlmcompress[docs,eval,smolvlm,triton,video]"
    assert extras["docs"][0] == "vlmcompress[eval]"
    wanted = project["dependencies"] + extras["dev"][1:] + extras["docs"][1:]
    wanted += [line for extra in ("eval", "smolvlm", "triton", "video") for line in extras[extra]]
    assert {re.match(r"[\w-]+", line)[0].lower() for line in wanted} <= pinned


@needs_toml
def test_extras():
    assert set(PROJECT["project"]["optional-dependencies"]) == {
        "triton",
        "flash-attn",
        "video",
        "smolvlm",
        "retrieval",
        "vllm",
        "demo",
        "eval",
        "docs",
        "dev",
    }


def test_version_is_a_literal():
    """Setuptools reads it from the source; anything but a literal would import torch to build."""
    source = (ROOT / "vlmcompress" / "version.py").read_text()
    assert f'\n__version__ = "{vlmcompress.__version__}"\n' in source


def test_typed_marker_and_licence():
    assert (ROOT / "vlmcompress" / "py.typed").is_file()
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
