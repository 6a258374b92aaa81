"""Method specs: what is printed reads as the same methods; nonsense is one line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from one_line import tried

from vlmcompress.methods import Method, list_methods
from vlmcompress.methods.composition.spec import parse

NAMES = [info.name for info in list_methods() if info.package is None]
LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(-2, 3).map(lambda x: round(x, 3)),
    st.sampled_from(["projector", "encoder", "plain", "size", "tiny-llava", ""]),
    st.lists(st.integers(0, 30), max_size=3).map(tuple),
)


def printed(method: Method) -> str:
    options = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    inside = ", ".join(f"{name}={value!r}" for name, value in options.items())
    name = type(method).name  # that of a method around another shows the other
    return f"{name}({inside})" if inside else name


@st.composite
def specs(draw: Any) -> str:
    """Names of methods, with values for some of their options that may be wrong."""
    parts = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        known = next(info for info in list_methods() if info.name == name).options
        chosen = draw(st.lists(st.sampled_from(list(known)), unique=True)) if known else []
        values = {option: draw(LITERALS) for option in chosen}
        inside = ", ".join(f"{option}={value!r}" for option, value in values.items())
        parts.append(f"{name}({inside})" if inside or draw(st.booleans()) else name)
    return draw(st.sampled_from(["+", " + "])).join(parts)


@given(specs())
def test_what_is_printed_reads_the_same(spec):
    pipeline = tried(lambda: parse(spec))
    if pipeline is None:
        return
    again = parse("+".join(printed(method) for method in pipeline.methods))
    assert again == pipeline
    assert parse(list(reversed(pipeline.methods))) == pipeline


@given(st.one_of(st.text(max_size=30), st.text("divprune+fastv(k=3),.'\"[]{}*", max_size=30)))
def test_nonsense_is_refused_in_one_line(text):
    tried(lambda: parse(text))
