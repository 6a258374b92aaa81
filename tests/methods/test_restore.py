"""RESTORE around other methods: groups by its definition in Python floats, and by hand."""

from dataclasses import replace

import pytest
import torch
from plain import cosine, mean, ranked
from shown import asked_of, tokens

from vlmcompress.errors import BudgetError, CompositionError, UnknownNameError, VLMCompressError
from vlmcompress.methods import get_method
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import AttentionBias
from vlmcompress.methods.restore import Restore
from vlmcompress.tokens import Grid, VisualTokens

SELECTORS = [
    "stride",
    "divprune",
    "hiprune",
    "todre-select",
    "token-correlation",
    "vispruner",
    "holov",
    "cdpruner",
    "scope",
    "mmtok",
    "vidcom2",
]


def restored(rows, kept, count, denser, sizes):
    """{place: (members, features)}."""
    rest = [i for i in range(len(rows)) if i not in kept]
    likeness = {i: {j: cosine(rows[i], rows[j]) for j in rest} for i in rest}
    density = {i: sum(likeness[i].values()) for i in rest}
    score = {}
    for i in rest:
        other = [
            j for j in rest if (density[j] > density[i] if denser else density[j] < density[i])
        ]
        score[i] = density[i] * (1 - max((likeness[i][j] for j in other), default=0.0))
    anchors = sorted(ranked(rest, score)[: count - len(kept)])
    groups = {anchor: [] for anchor in anchors}
    for i in rest:
        own = i if i in anchors else max(anchors, key=lambda a: (likeness[i][a], -a))
        groups[own].append(i)
    made = {place: ([place], rows[place]) for place in kept}
    for members in groups.values():
        repeated = [rows[i] for i in members for _ in range(sizes[i])]
        made[members[(len(members) - 1) // 2]] = members, mean(repeated)
    return made


def check(found, expected):
    assert found.anchors.tolist() == sorted(expected)
    for place, group, row in zip(
        found.anchors.tolist(), found.groups(), found.features.tolist(), strict=True
    ):
        members, values = expected[place]
        assert group == members
        assert row == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("density", ["reference", "peaks"])
@pytest.mark.parametrize("name", SELECTORS)
def test_by_definition_around_any_selector(name, density, seed):
    grid = Grid(2, 3, 4)
    method = Restore(of=name, density=density)
    shown = asked_of(method, tokens(grid, seed))
    sizes = [1 + i % 3 for i in range(24)] if seed else [1] * 24
    if seed:
        shown = replace(shown, sizes=torch.tensor(sizes).float())
    for count in (1, 2, 7, 12, 23):
        kept = get_method(name).select(shown, count // 2).tolist()
        expected = restored(shown.features.tolist(), kept, count, density == "peaks", sizes)
        check(method.reduce(shown, count), expected)


ROWS = torch.tensor([[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]])


@pytest.mark.parametrize(
    ("density", "groups", "features", "places"),
    [
        ("reference", [[0, 1], [2, 3, 4]], [[0.9, 0.3], [-0.1333, 0.6]], [0, 3]),
        ("peaks", [[0, 1, 2], [3, 4]], [[0.8, 0.4667], [-0.5, 0.5]], [1, 3]),
    ],
)
def test_hand_example(density, groups, features, places):
    """Five tokens are dropped, a sixth is kept."""
    shown = VisualTokens(torch.cat([ROWS, torch.tensor([[0.0, 0.0]])]), Grid(1, 1, 6))
    method = Restore(of="divprune", density=density)
    whole = method._merged(shown, shown.features, torch.tensor([5]), 3)
    assert whole.groups() == [*groups, [5]]
    assert whole.anchors.tolist() == [*places, 5]
    assert torch.allclose(whole.features[:2], torch.tensor(features), atol=1e-4)


def test_around_a_method_that_merges_only_the_attention_changes():
    grid = Grid(1, 5, 5)
    shown = asked_of(get_method("visionzip"), tokens(grid, 3))
    found, plain = (
        Restore(of="visionzip").reduce(shown, 9),
        get_method("visionzip").reduce(shown, 9),
    )
    assert found.groups() == plain.groups()
    assert torch.equal(found.features, plain.features)
    assert Restore(of="visionzip").attention_bias == AttentionBias(sizes=True, distance=True)


def test_without_merging_the_method_keeps_the_whole_budget():
    shown = tokens(Grid(1, 5, 5), 3)
    found = Restore(of="divprune", merge=False).reduce(shown, 9)
    kept = get_method("divprune").select(shown, 9)
    assert found.groups() == [[place] for place in kept.tolist()]
    assert torch.equal(found.features, shown.features[kept])
    assert found.groups() != Restore(of="divprune").reduce(shown, 9).groups()


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("restore", {"of": "divprune"}),
        ("restore(divprune)", {"of": "divprune"}),
        ("restore( todre-select )", {"of": "todre-select"}),
        (
            "restore(divprune(ratio=0.25), sizes=False)",
            {"of": "divprune(ratio=0.25)", "sizes": False},
        ),
        ("restore(of='scope', density='peaks')", {"of": "scope", "density": "peaks"}),
        ("restore(embedlens(table='a,b'),distance=False)", None),
    ],
)
def test_specs(spec, options):
    if options is None:
        with pytest.raises(VLMCompressError, match="a,b"):
            parse(spec)
        return
    (method,) = parse(spec).methods
    assert method == Restore(**options)
    assert method.name == f"restore({options['of']})"
    assert parse(f"{spec}+fastv").name == f"{method.name}+fastv"


def test_a_method_object_keeps_its_options():
    (method,) = parse(Restore(of="scope"), merge=False).methods
    assert method == Restore(of="scope", merge=False)
    assert method.asks == get_method("scope").asks
    assert method.keep_count(Grid(1, 4, 4), None) == get_method("scope").keep_count(
        Grid(1, 4, 4), None
    )


def test_what_the_method_needs_of_the_grid_is_needed():
    assert parse("restore(hiprune)").projector.on_grid
    assert not parse("restore(divprune)").projector.on_grid
    with pytest.raises(CompositionError, match="needs tokens on their grid"):
        parse("unit-drop+restore(hiprune)")


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("restore(fastv)", CompositionError, "one method between projector and decoder"),
        ("restore(divprune+fastv)", CompositionError, "got 'divprune\\+fastv'"),
        (
            "restore(restore(divprune))",
            CompositionError,
            "one method between projector and decoder",
        ),
        ("restore(tome)", CompositionError, "acts at the projector stage"),
        ("restore(full)", CompositionError, "takes a budget, 'full' does not"),
        ("restore(chunk(threshold=0.5))", CompositionError, r"'chunk\(threshold=0.5\)' does not"),
        ("restore(divprun)", UnknownNameError, "unknown method 'divprun'.*divprune"),
        ("restore(divprune, of='scope')", CompositionError, "of is given twice"),
        ("restore(divprune, ratio=0.2)", UnknownNameError, "option of restore 'ratio'"),
        ("restore(divprune, scope)", VLMCompressError, "cannot read the options"),
        ("fastv(divprune)", VLMCompressError, "cannot read the options"),
    ],
)
def test_what_it_does_not_go_around(spec, error, words):
    with pytest.raises(error, match=words) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_content_does_not_decide():
    method = Restore(of="token-correlation")
    with pytest.raises(BudgetError, match=r"restore\(token-correlation\) needs a budget"):
        method.keep_count(Grid(2, 3, 3), None)
    assert method.keep_count(Grid(2, 3, 3), 9) == 9


@pytest.mark.parametrize(
    ("options", "bias"),
    [
        ({}, AttentionBias(sizes=True, distance=True)),
        ({"distance": False}, AttentionBias(sizes=True, distance=False)),
        ({"sizes": False}, AttentionBias(sizes=False, distance=True)),
        ({"sizes": False, "distance": False}, None),
    ],
    ids=str,
)
def test_the_bias_that_it_asks_for(options, bias):
    assert Restore(**options).attention_bias == bias
    assert parse("divprune").attention_bias is None
