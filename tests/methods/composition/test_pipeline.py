"""Specs, options, composition, and the registry that names come from."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import vlmcompress.methods
from vlmcompress.errors import BudgetError, CompositionError, UnknownNameError, VLMCompressError
from vlmcompress.methods import Method, Selector, get_method, list_methods, register_method
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.pyramiddrop import PyramidDrop
from vlmcompress.methods.random import Random
from vlmcompress.methods.registry import METHODS
from vlmcompress.tokens import Grid, VisualTokens

LLAVA = Grid(1, 24, 24)
TINY = Grid(1, 12, 12)


@dataclass(frozen=True)
class Ends(Selector):
    name: ClassVar[str] = "ends"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "keeps the first tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})
    k: int = 1
    style: str = "plain"

    def select(self, tokens: VisualTokens, count: int) -> torch.Tensor:
        return torch.arange(count)


@pytest.fixture
def ends():
    register_method(Ends)
    yield Ends
    del METHODS._entries["ends"]


@pytest.mark.parametrize(
    ("spec", "methods"),
    [
        ("divprune", (DivPrune(),)),
        ("fastv", (FastV(),)),
        ("divprune+fastv", (DivPrune(), FastV())),
        ("fastv+divprune", (DivPrune(), FastV())),
        (" divprune ( ratio = 0.1 ) + fastv ( k = 3 ) ", (DivPrune(ratio=0.1), FastV(k=3))),
        ("fastv()", (FastV(),)),
        ("fastv(k=3, ratio=.75,)", (FastV(k=3, ratio=0.75),)),
        ("pyramiddrop(layers=(4, 8))", (PyramidDrop(layers=(4, 8)),)),
        ("pool+pyramiddrop(layers=[4, 8], lam=0.25)", (Pool(), PyramidDrop((4, 8), 0.25))),
        ("pyramiddrop(layers=None)", (PyramidDrop(),)),
        ("divprune(ratio=1e-1+0j)", None),
        (FastV(k=3), (FastV(k=3),)),
        ([DivPrune(), FastV(k=3)], (DivPrune(), FastV(k=3))),
        ((FastV(k=3),), (FastV(k=3),)),
    ],
    ids=str,
)
def test_specs(spec, methods):
    if methods is None:
        with pytest.raises(VLMCompressError, match="must be a number"):
            parse(spec)
        return
    pipeline = parse(spec)
    assert pipeline.methods == methods
    assert pipeline.name == "+".join(method.name for method in methods)
    assert pipeline.needs == frozenset()


@pytest.mark.parametrize(
    "spec",
    [
        *("", " ", "+", "divprune+", "divprune++fastv", "divprune fastv", "3", "divprune("),
        *("fastv)", "fastv(3)", "fastv(k)", "fastv(k=)", "fastv(k=x())", "fastv(k=3)(ratio=.5)"),
        *("fastv(**{})", "fastv(k=3", "fastv(k=3))", "fastv(k=3, k=4)", "fastv(k=\0)"),
        *("fastv(k=__import__('os'))", "fastv(k=" + "-" * 5000 + "1)"),
        *([], 3, None, [3], ["divprune"], DivPrune, [DivPrune]),
    ],
    ids=lambda spec: str(spec)[:24].replace("\0", "NUL"),
)
def test_malformed_specs_show_an_example(spec):
    with pytest.raises(VLMCompressError, match=r"divprune\(ratio=0.1\)\+fastv\(k=3\)"):
        parse(spec)


@pytest.mark.parametrize("spec", ["divprun", "DivPrune", "fastv+divprun", "divprun(ratio=0.1)"])
def test_unknown_methods_suggest_the_nearest(spec):
    with pytest.raises(UnknownNameError, match=r"did you mean 'divprune'.* known: full, text-only"):
        parse(spec)


def test_options_go_to_the_method_that_has_them():
    assert parse("divprune+fastv", k=3).methods == (DivPrune(), FastV(k=3))
    assert parse("m3+pyramiddrop", layers=[2, 4]).decoder == PyramidDrop(layers=(2, 4))
    assert parse([Random(seed=1), FastV(k=3)], seed=2).methods == (Random(seed=2), FastV(k=3))
    assert parse("fastv(k=3)", ratio=0.75).decoder == FastV(k=3, ratio=0.75)


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("divprune", {"ratoi": 1}, UnknownNameError, "divprune 'ratoi': did you mean 'ratio'"),
        ("divprune+fastv", {"sed": 1}, UnknownNameError, "'sed': .*known: threshold, ratio, k$"),
        ("divprune(ratoi=0.1)", {}, UnknownNameError, "did you mean 'ratio'"),
        ("full", {"k": 1}, UnknownNameError, "full has no options, got 'k'"),
        ("stride(k=1)", {}, UnknownNameError, "stride has no options, got 'k'"),
        (
            "divprune+fastv",
            {"ratio": 0.2},
            CompositionError,
            r"divprune and fastv both have .* 'ratio': .*\"divprune\(ratio=\.\.\.\)\+fastv\"",
        ),
        ("fastv(k=3)", {"k": 4}, CompositionError, "k is given twice"),
        ("fastv", {"k": "x"}, VLMCompressError, "fastv: k must be an integer, got 'x'"),
        ("fastv(k='x')", {}, VLMCompressError, "fastv: k must be an integer, got 'x'"),
        ("fastv", {"k": True}, VLMCompressError, "fastv: k must be an integer, got True"),
        ("fastv(k=0)", {}, VLMCompressError, "k must be 1 or more, got 0"),
        (FastV(), {"k": 0}, VLMCompressError, "k must be 1 or more, got 0"),
        ("divprune+random", {}, CompositionError, "divprune and random both act at the projector"),
        ("fastv+fastv", {}, CompositionError, "fastv and fastv both act at the decoder stage"),
        ("full+fastv", {}, CompositionError, "full keeps all visual tokens, so it goes with no"),
        ("fastv+text-only", {}, CompositionError, "text-only drops all visual tokens, so"),
    ],
    ids=str,
)
def test_what_cannot_be_put_together(spec, options, error, message):
    with pytest.raises(error, match=message):
        parse(spec, **options)


def test_needs_are_those_of_all_parts(ends):
    assert parse("ends+fastv(k=3)").needs == {"cls_attention"}
    with pytest.raises(CompositionError, match="ends and fastv both have the option 'k'"):
        parse("ends+fastv", k=3)
    with pytest.raises(VLMCompressError, match="ends: style must be a string, got 3"):
        parse("ends", style=3)


@pytest.mark.parametrize(
    ("spec", "budget", "stages"),
    [
        ("full", None, [(576, 32)]),
        ("text-only", None, [(0, 32)]),
        ("divprune", None, [(56, 32)]),
        ("divprune", 64, [(64, 32)]),
        ("divprune", 576, [(576, 32)]),
        ("divprune", 1000, [(576, 32)]),
        ("pool", 65, [(64, 32)]),
        ("fastv", None, [(576, 2), (288, 30)]),
        ("fastv", 128, [(576, 2), (98, 30)]),
        ("fastv", 576, [(576, 32)]),
        ("divprune+fastv", None, [(56, 2), (28, 30)]),
        # s = 306/576, so 64 / s = 120.5 enter and (32*64 - 2*120) / 30 = 60.3 go on.
        ("divprune+fastv", 64, [(120, 2), (60, 30)]),
        # s = 184.5/576 would ask for 200, and 576 * 64 is 192 squared.
        ("divprune+fastv(k=3, ratio=0.75)", 64, [(192, 3), (51, 29)]),
        # s = 270/576, so 64 / s = 136.5.
        ("random+pyramiddrop", 64, [(137, 8), (68, 8), (34, 8), (17, 8)]),
        # 320 / s is more than there is: each goes half of the way.
        ("divprune+fastv", 320, [(429, 2), (313, 30)]),
        ("divprune+fastv", 576, [(576, 32)]),
        ("divprune+fastv", 0, [(0, 32)]),
        ("divprune+fastv", 1, [(2, 2), (1, 30)]),
    ],
    ids=str,
)
def test_plans_of_llava(spec, budget, stages):
    plan = parse(spec).plan(LLAVA, 32, budget)
    assert plan.per_layer == [n for n, times in stages for _ in range(times)]
    assert plan.keep == stages[0][0]
    assert plan.mean == sum(plan.per_layer) / 32


def test_the_schedule_is_solved_from_what_a_pool_really_keeps():
    # s = 2/3 on 6 layers: 35 / s = 52.5 asks for 52, the pool makes 5x10.
    plan = parse("pool+fastv").plan(TINY, 6, 35)
    assert plan == ImagePlan(parts=((TINY, 50),), schedule={2: 28}, layers=6)
    assert plan.mean == pytest.approx(35, abs=0.5)


@pytest.mark.parametrize("spec", ["divprune+fastv", "stride+fastv(k=4)", "random+pyramiddrop"])
@pytest.mark.parametrize("layers", [6, 32])
def test_compositions_meet_every_budget(spec, layers):
    pipeline = parse(spec)
    default = pipeline.decoder.schedule(layers, 144, None)
    for budget in range(1, 145):
        plan = pipeline.plan(TINY, layers, budget)
        # Whole numbers of a stage move the mean by less than one.
        assert abs(plan.mean - budget) <= 0.5
        assert (plan.schedule == {}) == (budget == 144 or plan.keep <= budget)
        if budget >= 40 and plan.keep < round((144 * budget) ** 0.5):
            share = default[min(default)] / 144
            assert plan.schedule[min(default)] / plan.keep == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("spec", "budget", "message"),
    [
        ("full", 64, "full keeps all visual tokens and takes no budget, got 64"),
        ("text-only", 64, "text-only drops all visual tokens and takes no budget, got 64"),
        ("random", None, "random needs a budget"),
        ("random+fastv", None, "random needs a budget"),
        ("fastv", 20, "36 visual tokens"),
        ("divprune", -1, "0 or more, got -1"),
        ("divprune", float("nan"), "0 or more, got nan"),
        ("divprune", float("inf"), "0 or more, got inf"),
        ("pool+fastv", 0.2, "pool makes at least one token per frame"),
        ("divprune+fastv(k=32)", 64, "layers 1 to 31"),
    ],
)
def test_plans_that_cannot_be(spec, budget, message):
    with pytest.raises(BudgetError, match=message):
        parse(spec).plan(LLAVA, 32, budget)


def test_plans_follow_the_budget_and_the_grid():
    pipeline = parse("divprune+fastv")
    plans = [pipeline.plan(LLAVA, 32, b).per_layer for b in (32, 64, 128)]
    assert len({tuple(plan) for plan in plans}) == 3
    assert pipeline.plan(TINY, 32, None).keep == 14
    assert parse("divprune+fastv").plan(Grid(1, 0, 0), 32, 4).per_layer == [0] * 32


def test_get_method():
    assert get_method("divprune", ratio=0.2) == DivPrune(ratio=0.2)
    assert get_method("divprune(ratio=0.2)") == DivPrune(ratio=0.2)
    with pytest.raises(CompositionError, match="get_method gives one"):
        get_method("divprune+fastv")
    with pytest.raises(UnknownNameError, match="did you mean 'fastv'"):
        get_method("fast")


def test_list_methods():
    infos = {info.name: info for info in list_methods()}
    assert list(infos) == METHODS.names()
    assert list(infos)[:2] == ["full", "text-only"]
    assert infos["fastv"].options == {"k": 2, "ratio": 0.5}
    assert infos["fastv"].stages == {"decoder"}
    assert infos["pool"].stages == {"projector", "decoder"}
    assert infos["m3"].stages == {"projector"}
    for name, info in infos.items():
        assert METHODS.get(name).name == name
        assert info.paper == "-" or info.paper.startswith("arXiv ")
        assert "\n" not in info.summary
    assert infos["divprune"].needs == frozenset()
    assert infos["scope"].needs == {"cls_attention|encoder_attention"}


def test_registered_methods_work_like_built_in_ones(ends):
    assert parse("ends(k=2)").methods == (Ends(k=2),)
    assert isinstance(parse("ends"), Pipeline)
    assert [info.name for info in list_methods()][-1] == "ends"
    with pytest.raises(UnknownNameError, match="already registered"):
        register_method(Ends)


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    [
        (Ends, "a+b", "needs a name .* got 'a\\+b'"),
        (Ends, "", "needs a name"),
        (Method, None, "Method needs a name .* got None"),
        (int, "integer", "must be a subclass of Method"),
        (Ends, "full", "already registered"),
    ],
)
def test_registering_nonsense(cls, name, message):
    before = METHODS.names()
    with pytest.raises(VLMCompressError, match=message):
        register_method(cls, name)
    assert METHODS.names() == before


def test_a_method_without_a_stage_of_ours_cannot_run():
    @dataclass(frozen=True)
    class Pixels(Method):
        name: ClassVar[str] = "pixels"
        summary: ClassVar[str] = "-"

    with pytest.raises(CompositionError, match="no method of one of the stages pixels"):
        parse(Pixels())


def test_methods_and_ops_know_no_models():
    root = Path(vlmcompress.methods.__file__).parents[1]
    files = [*(root / "methods").glob("*.py"), *(root / "ops").glob("*.py")]
    assert len(files) > 10
    upward = {"transformers"} | {f"vlmcompress.{m}" for m in ("patches", "api", "eval", "cli")}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(n == u or n.startswith(u + ".") for n in names for u in upward), file
