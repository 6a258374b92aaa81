"""Plans of images, made before these are encoded, without vLLM."""

import pytest

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import ProjectorMethod
from vlmcompress.methods.registry import METHODS
from vlmcompress.serving.counts import (
    ItemPlan,
    check_stage,
    pipeline_of,
    plan,
    signals_of,
    with_texts,
)
from vlmcompress.serving.settings import Settings
from vlmcompress.tokens import Grid, Layout, Separator

IMAGE = Layout.of(Grid(1, 12, 12))
CLIP = Layout.of(Grid(4, 6, 6))
ROWS = Layout((Grid(1, 2, 2), Grid(1, 2, 3)), (Separator(7, 4, 7), Separator(11, 7, 10)))


@pytest.mark.parametrize(
    ("budget", "layout", "kept"),
    [("36", IMAGE, 36), ("25%", IMAGE, 36), ("200", IMAGE, 144), ("16 per frame", CLIP, 64)],
)
def test_counts_follow_from_the_layout(budget, layout, kept):
    found = plan(Settings("divprune", budget), layout)
    assert (found.given, found.keep) == (len(layout), kept)


def test_separators_all_stay_where_content_decides():
    found = plan(Settings("divprune", "50%"), ROWS)
    assert (found.given, found.keep, found.emptied) == (12, 5 + 2, ())
    assert [kept for _, kept in found.parts] == [2, 3]


def test_separators_go_with_rows_that_the_grid_says_are_emptied():
    """Of 2 x 2 and 2 x 3 tokens stride keeps 1 and 2: of the second grid those of one row."""
    found = plan(Settings("stride", "30%"), ROWS)
    assert [kept for _, kept in found.parts] == [1, 2]
    assert (found.keep, found.emptied) == (3 + 1, (7,))
    assert plan(Settings("stride", "90%"), ROWS).emptied == ()
    assert plan(Settings("full"), ROWS).emptied == ()
    assert plan(Settings("stride", "20%"), ROWS, (), (5, 6)).emptied == (7,)


@pytest.mark.parametrize(
    ("budget", "kept"), [("75%", (432, 450)), ("33%", (190, 198)), ("0.1%", (0, 1)), ("7", (3, 4))]
)
def test_shares_of_a_grid_that_is_not_square(budget, kept):
    """24 x 24 and 24 x 25 tokens: 75 % of 1176 are 882, 33 % are 388.08, 0.1 % are 1.176."""
    layout = Layout((Grid(1, 24, 24), Grid(1, 24, 25)))
    for method in ("stride", "divprune"):
        assert tuple(n for _, n in plan(Settings(method, budget), layout).parts) == kept


@pytest.mark.parametrize("method", ["divprune", "evs", "vidcom2", "fastvid", "chunk"])
def test_a_threshold_is_refused_with_and_without_a_budget(method):
    spec = f"{method}(threshold=0.5)"
    with pytest.raises(VLMCompressError, match="decides by the content how many"):
        plan(Settings(spec), IMAGE)
    with pytest.raises(VLMCompressError, match="leave out the budget"):
        plan(Settings(spec, "25%"), IMAGE)


@pytest.mark.parametrize("layout", [IMAGE, CLIP, ROWS])
def test_a_plan_travels_as_bytes(layout):
    found = plan(Settings("stride", "30%"), layout, (5, 6), (7, 8))
    assert (found.words, found.texts) == ((5, 6), (7, 8))
    assert bool(found.emptied) == (layout is ROWS)
    assert ItemPlan.load(found.dump()) == found


def test_text_between_frames_stays_and_counts_for_no_budget():
    """Two frames of 1 x 2 tokens (9), a word before each and one behind the clip."""
    full = [4, 9, 9, 5, 9, 9, 6]
    layout, texts = with_texts(Layout.of(Grid(2, 1, 2)), full, [one == 9 for one in full])
    assert texts == (4, 5, 6)
    assert layout.visual.tolist() == [one == 9 for one in full]
    found = plan(Settings("divprune", "50%"), layout, (), texts)
    assert (found.given, found.keep) == (7, 2 + 3)
    assert found.ids(9) == full
    assert found.encoded == Layout.of(Grid(2, 1, 2))
    with pytest.raises(VLMCompressError, match="keeps no token"):
        plan(Settings("text-only"), layout, (), texts)


def test_newlines_are_placeholders_that_the_model_encodes():
    found = plan(Settings("divprune", "50%"), ROWS)
    assert found.ids(9) == [9] * 12
    assert found.encoded == ROWS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("fastv", "25%"), "fastv cannot be served: fastv acts between decoder"),
        (Settings("divprune+fastv", "25%"), r"divprune\+fastv cannot be served"),
        (Settings("restore(divprune)", "25%"), r"restore\(divprune\) cannot be served: it adds a"),
        (Settings("tome", "25%"), r"tome\(stage='projector'\)"),
        (Settings("pixelprune", "25%"), "pixelprune acts at the pixels stage"),
        (Settings("text-only"), "keeps no token"),
        (Settings("divprune", "0.4 flops"), "cannot be served per request"),
        (Settings("divprune", "120 ms"), "cannot be served per request"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(settings, message):
    with pytest.raises(VLMCompressError, match=message) as caught:
        plan(settings, IMAGE)
    assert "\n" not in str(caught.value)


def test_every_adaptive_method_needs_a_budget():
    adaptive = [
        name
        for name in METHODS.names()
        if issubclass(METHODS.get(name), ProjectorMethod) and METHODS.get(name).adaptive
    ]
    assert adaptive
    for name in adaptive:
        spec = "embedlens(table='tiny-llava')" if name == "embedlens" else name
        with pytest.raises(VLMCompressError, match="decides by the content"):
            plan(Settings(spec), IMAGE)
        assert plan(Settings(spec, "25%"), IMAGE).keep == 36


def test_a_method_that_acts_elsewhere_in_process_is_refused():
    check_stage("divprune", "a family", ("pixels", "projector"))
    check_stage("downsample", "a family", ("projector",))
    with pytest.raises(VLMCompressError, match="downsample acts at the pixels stage of a family"):
        check_stage("downsample", "a family", ("pixels", "projector"))


def test_signals_that_a_model_lacks_are_named():
    assert signals_of("visionzip", {"keys", "cls_attention"}, "a model") == {
        "keys",
        "cls_attention",
    }
    with pytest.raises(VLMCompressError, match=r"needs cls_attention or .*which a model does not"):
        signals_of("holov", {"text"}, "a model")


def test_pipelines_are_read_once():
    assert pipeline_of("divprune") is pipeline_of("divprune")
