"""VAR: sinks by their huge dimensions."""

import json

import pytest
import torch
from shown import Layer

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.var import PUBLISHED, VAR
from vlmcompress.tokens import Grid

TABLE = json.loads(PUBLISHED.read_text())


def layer(sizes, width=4096, depth=32, dim=2533):
    """Visual tokens of ones whose dimension `dim` is as given."""
    view = Layer(Grid(1, 1, len(sizes)), depth=depth)
    view.hidden = torch.ones(len(view.hidden), width)
    view.hidden[view.visual, dim] = torch.tensor(sizes)
    view.hidden[:, 7] = 100.0  # huge for all, and no sink dimension
    return view


def test_sinks_go_and_the_others_stay():
    # rms is near sqrt(1 + 100**2 / 4096) = 1.855: 20 times that is 37.1.
    view = layer([1.0, 60.0, -80.0, 30.0])
    method = VAR(dims="llama-2-7b")
    assert method.keep(view, 4).tolist() == [0, 3]
    assert VAR(dims=(2533,), tau=10).keep(view, 4).tolist() == [0]
    assert VAR(dims=(1415,)).keep(view, 4).tolist() == [0, 1, 2, 3]
    assert VAR(dims=(7,)).keep(view, 4).tolist() == []


def test_with_a_budget_the_smallest_phi_stay():
    view = layer([60.0, 5.0, 30.0, -80.0])
    assert VAR(dims=(2533,)).keep(view, 1).tolist() == [1]
    assert VAR(dims=(2533,)).keep(view, 3).tolist() == [0, 1, 2]
    assert VAR(dims=(2533,)).keep(view, 0).tolist() == []
    assert VAR(dims=(0,)).schedule(32, 576, 64) == {2: 30}
    assert VAR(dims=(0,)).schedule(32, 576, None) == {2: 576}


def test_a_value_of_exactly_tau_is_no_sink():
    method, view = VAR(dims=(3,)), layer([50.0], width=64, dim=3)
    tau = -float(method.score(view)[0])
    assert VAR(dims=(3,), tau=tau).keep(view, 1).tolist() == [0]
    assert VAR(dims=(3,), tau=tau * 0.999).keep(view, 1).tolist() == []


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_table_says_where_it_is_from_and_fits_its_decoder(name):
    entry = TABLE[name]
    assert entry["origin"].startswith(("published: ", "third party, unverified: "))
    assert max(entry["dims"]) < entry["hidden_size"]
    shape = {"width": entry["hidden_size"], "depth": entry["layers"]}
    assert VAR(dims=name).keep(layer([1.0], dim=0, **shape), 1).tolist() == [0]


def test_a_named_decoder_of_another_shape_is_refused():
    with pytest.raises(VLMCompressError, match=r"4096 dimensions and 32 layers, .* 4096 and 36"):
        VAR(dims="llama-2-7b").keep(layer([1.0], depth=36), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got dims=None: give dims='llama-2-7b' or .*calibrate.sinks"),
        ({"dims": "vicuna"}, "got dims='vicuna': give dims='llama-2-7b' or "),
        ({"dims": ()}, r"dims must be numbers of 0 or more, got \(\)"),
        ({"dims": (3, -1)}, r"dims must be numbers of 0 or more, got \(3, -1\)"),
        ({"dims": (1,), "tau": 0.0}, "tau must be above 0, got 0.0"),
        ({"dims": (1,), "k": 0}, "k must be 1 or more, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message) as error:
        VAR(**options)
    assert "\n" not in str(error.value)


def test_dims_outside_the_decoder():
    with pytest.raises(VLMCompressError, match=r"among 0 to 63 of this decoder, got \(2533,\)"):
        VAR(dims=(2533,)).keep(layer([1.0], width=64, dim=1), 1)
