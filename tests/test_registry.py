"""Registries: lazy, strict, helpful."""

import pytest

from vlmcompress.errors import UnknownNameError
from vlmcompress.methods.contracts.method import Method
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.registry import Registry


@pytest.fixture
def methods() -> Registry[Method]:
    registry: Registry[Method] = Registry("method", "vlmcompress.methods.contracts.method:Method")
    registry.register("divprune", "vlmcompress.methods.divprune:DivPrune")
    return registry


def test_a_string_becomes_its_class(methods):
    assert methods.get("divprune") is DivPrune
    assert list(methods.items()) == [("divprune", DivPrune)]


def test_nothing_is_imported_before_it_is_asked_for(methods):
    methods.register("broken", "vlmcompress.no_such_module:Nothing")
    assert methods.names() == ["divprune", "broken"]
    with pytest.raises(ModuleNotFoundError):
        methods.get("broken")


def test_an_unknown_name_suggests_the_nearest_and_lists_all(methods):
    with pytest.raises(UnknownNameError, match=r"did you mean 'divprune'.*known: divprune"):
        methods.get("DivPrun")
    with pytest.raises(UnknownNameError) as raised:
        methods.get("zzz")
    assert "did you mean" not in str(raised.value)


def test_a_taken_name_raises(methods):
    with pytest.raises(UnknownNameError, match="already registered"):
        methods.register("divprune", DivPrune)


def test_a_class_of_another_kind_raises(methods):
    with pytest.raises(UnknownNameError, match="subclass of Method"):
        methods.register("int", int)
    methods.register("late", "builtins:int")
    with pytest.raises(UnknownNameError, match="subclass of Method"):
        methods.get("late")
