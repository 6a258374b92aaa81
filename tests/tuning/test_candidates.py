"""What races where nobody names candidates."""

from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.registry import METHODS
from vlmcompress.tuning import candidates as module
from vlmcompress.tuning.candidates import candidates, takes_budget


def test_every_method_that_keeps_to_a_budget_races():
    found = candidates()
    assert len(found) == len(set(found))
    able = {name for name in METHODS.names() if takes_budget(name)}
    assert able <= set(found)
    assert {"full", "text-only"}.isdisjoint(found), "they define their own count"
    assert {"divprune", "fastv", "aim", "todre"} <= set(found)
    assert not takes_budget("no-such-method")
    for spec in found:
        assert all(method.takes_budget for method in parse(spec).methods)


def test_what_is_listed_can_race():
    """A name that is mistyped or gone would be left out without a word."""
    listed = [*module.OPTIONS, *module.MODIFIED, *module.COMPOSED]
    assert set(listed) <= set(candidates())


def test_question_blind_ones_keep_the_same_for_every_question():
    blind = candidates(question_blind=True)
    assert blind == [spec for spec in candidates() if not parse(spec).reads_question]
    assert {"divprune", "scope", "pitome"} <= set(blind)
    assert {"fastv", "divprune+fastv", "cdpruner"}.isdisjoint(blind)
    assert 10 < len(blind) < len(candidates())
