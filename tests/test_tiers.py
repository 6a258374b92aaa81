"""The default tier leaves out combinations, but no value, no pair and no mechanism."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiers
from mechanisms import MECHANISMS
from subject_models import SUBJECTS
from tiers import by_default, covering, rotation, share

from vlmcompress.methods.registry import METHODS


def pairs_of(rows):
    return {
        ((one, row[one]), (other, row[other]))
        for row in rows
        for one, other in combinations(sorted(row), 2)
    }


@pytest.mark.parametrize("sizes", [(8, 5, 9, 2), (3, 3, 3), (2, 7), (4, 1, 1)])
def test_every_pair_is_met_by_few_rows(sizes):
    names = "abcd"[: len(sizes)]
    rows = [dict(zip(names, row, strict=True)) for row in product(*map(range, sizes))]
    chosen = [rows[place] for place in covering(rows)]
    assert pairs_of(chosen) == pairs_of(rows)
    least = sorted(sizes)[-1] * sorted(sizes)[-2]
    assert least <= len(chosen) <= 1.5 * least


def test_pairs_that_no_row_has_are_not_missed():
    rows = [{"a": a, "b": b, "c": a * b % 3} for a, b in product(range(4), range(4)) if a != b]
    random.Random(0).shuffle(rows)
    chosen = covering(rows)
    assert pairs_of([rows[place] for place in chosen]) == pairs_of(rows)
    assert chosen == sorted(set(chosen))


def test_one_axis_keeps_all_of_its_values_and_no_axis_keeps_its_row():
    assert covering([{"a": 1}, {"a": 2}, {"a": 1}]) == [0, 1]
    assert covering([]) == []


def test_rotation_meets_all_in_turn():
    rows = [{"family": f, "method": m} for f, m in product("abcdefg", range(5))]
    chosen = [rows[place] for place in rotation(rows, "family", by="method", count=3)]
    met = {m: [row["family"] for row in chosen if row["method"] == m] for m in range(5)}
    assert met == {0: list("ace"), 1: list("bdg"), 2: list("acf"), 3: list("beg"), 4: list("adf")}


def item(number, marks=(), function=None, **values):
    """What pytest collects, as far as tiers look at it."""
    found = {mark.name: mark for mark in marks}
    return SimpleNamespace(
        number=number,
        function=function,
        callspec=SimpleNamespace(params=values),
        get_closest_marker=found.get,
    )


def test_the_default_tier():
    pairs = [pytest.mark.pairs(model=["x", "y"]).mark]
    turns = [pytest.mark.rotating(axis="b", by="a", count=1).mark]
    whole = [item(n, function=len, a=n) for n in range(4)]
    slow = [item(n, [pytest.mark.slow.mark], function=max) for n in range(4, 6)]
    laws = [
        item(6 + n, pairs, function=min, model=model, a=a, b=b)
        for n, (model, a, b) in enumerate(product("xyz", range(3), range(2)))
    ]
    turned = [
        item(30 + n, turns, function=sum, a=a, b=b)
        for n, (a, b) in enumerate(product(range(2), range(2)))
    ]
    found = by_default([*whole, *slow, *laws, *turned])
    assert found[:4] == whole
    assert [one.number for one in found if one.number >= 30] == [30, 33]
    chosen = [one.callspec.params for one in found if 6 <= one.number < 30]
    wanted = [one.callspec.params for one in laws if one.callspec.params["model"] != "z"]
    assert pairs_of(chosen) == pairs_of(wanted)
    assert len(chosen) < len(wanted)
    assert len(found) == 4 + len(chosen) + 2


COLLECTED = """
import pytest

@pytest.fixture(params=[["p"], ["q"]])
def made(request):
    return request.param

@pytest.mark.pairs(mean=[True])
@pytest.mark.parametrize("kind", ["x", "y"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 2), (4, 1)])
def test_pairs(rows, columns, mean, kind, made):
    pass

@pytest.mark.rotating(axis="made", by="number", count=1)
@pytest.mark.parametrize("number", range(5))
def test_turns(number, made):
    pass

@pytest.mark.rotating(axis="number", by="made", count=2, kind=["x"])
@pytest.mark.parametrize("kind", ["x", "y"])
@pytest.mark.parametrize("number", range(5))
def test_some_turns(number, kind, made):
    pass

@pytest.mark.slow
def test_slow():
    pass
"""


@pytest.mark.parametrize(("options", "counts"), [([], (6, 5, 4, 0)), (["--full"], (24, 10, 20, 1))])
def test_what_pytest_collects(tmp_path, options, counts):
    (tmp_path / "test_it.py").write_text(COLLECTED)
    (tmp_path / "conftest.py").write_text(
        "from tiers import by_default\n\n"
        "def pytest_addoption(parser):\n    parser.addoption('--full', action='store_true')\n\n"
        "def pytest_collection_modifyitems(config, items):\n"
        "    items[:] = items if config.getoption('--full') else by_default(items)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-c", os.devnull, *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(tiers.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    names = ("test_pairs", "test_turns", "test_some_turns", "test_slow")
    assert tuple(done.stdout.count(f"::{name}") for name in names) == counts, done.stdout


@pytest.mark.parametrize("shares", [1, 4, 7])
def test_shares_hold_everything_once(shares):
    items = list(range(30))
    parts = [share(items, f"{number}/{shares}") for number in range(1, shares + 1)]
    assert sorted(one for part in parts for one in part) == items
    with pytest.raises(ValueError, match="i from 1 to n"):
        share(items, f"{shares + 1}/{shares}")


def test_every_mechanism_is_a_subject_and_every_family_meets_a_method():
    assert set(MECHANISMS) <= set(SUBJECTS)
    methods = [name for name in METHODS.names() if name != "full"]
    rows = [{"subject": s, "method": m} for s, m in product(SUBJECTS, methods)]
    chosen = [rows[place] for place in rotation(rows, "subject", by="method", count=3)]
    assert {row["subject"] for row in chosen} == set(SUBJECTS)
    assert {row["method"] for row in chosen} == set(methods)


def test_full_and_the_default_tier_are_two_runs(pytestconfig):
    plugins = pytestconfig.pluginmanager.get_plugins()
    conftest = str(Path(__file__).parent / "conftest.py")
    shared = next(p for p in plugins if getattr(p, "__file__", "") == conftest)
    for options, left in (({}, [0, 2]), ({"--full": True}, [0, 1, 2]), ({"--shard": "2/2"}, [2])):
        marks = {1: [pytest.mark.slow.mark]}
        items = [item(n, marks.get(n, ()), function=n) for n in range(3)]
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        config = SimpleNamespace(getoption=options.get, hook=hook)
        shared.pytest_collection_modifyitems(config, items)
        assert [one.number for one in items] == left
