"""The tool that breaks the engine: its lines are there, and it tells killed from survived."""

from __future__ import annotations

import pytest

from dev import mutations
from dev.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_line_is_there_once_and_is_changed(mutation):
    text = (ROOT / mutation.file).read_text()
    changed = mutation.applied(text)
    assert changed != text
    compile(changed, mutation.file, "exec")
    assert (ROOT / mutation.tests[0]).is_file()


def test_a_line_that_is_gone_or_not_alone_is_an_error():
    mutation = Mutation("it", "a.py", "x = 1", "x = 2", ())
    for text in ("x = 3", "x = 1\nx = 1"):
        with pytest.raises(LookupError, match=r"it: a\.py has"):
            mutation.applied(text)


@pytest.fixture
def checkout(tmp_path):
    """A module of one line and its tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "one.py").write_text("value, spare = 1, 2\n")
    (tmp_path / "tests" / "test_one.py").write_text(
        "import one\n\n\ndef test_value():\n    assert one.value == 1\n\n\n"
        "def test_broken():\n    assert one.spare == 3\n"
    )
    return tmp_path


def mutated(old, new, *tests):
    return Mutation("it", "one.py", old, new, ("tests/test_one.py", *tests))


@pytest.mark.slow
def test_killed_survived_and_neither(checkout):
    killed = mutated("= 1,", "= 5,", "-k", "value")
    assert mutations.noticed(killed, checkout) == "tests/test_one.py::test_value"
    assert mutations.noticed(mutated(", 2", ", 5", "-k", "value"), checkout) is None
    with pytest.raises(RuntimeError, match="fails without any mutation"):
        mutations.noticed(mutated(", 2", ", 5", "-k", "broken"), checkout)
    with pytest.raises(RuntimeError, match="could not run"):
        mutations.noticed(mutated(", 2", ", 5", "-k", "nothing"), checkout)
    assert (checkout / "one.py").read_text() == "value, spare = 1, 2\n"


@pytest.mark.parametrize(("found", "code"), [("tests/a.py::b", 0), (None, 1)])
def test_the_exit_code_says_whether_one_survived(monkeypatch, capsys, found, code):
    monkeypatch.setattr(mutations, "noticed", lambda mutation, copy: found)
    monkeypatch.setattr(mutations.shutil, "copytree", lambda *_, **__: None)
    assert mutations.main(["wrong row"]) == code
    printed = capsys.readouterr().out
    assert printed.split() == [
        "wrong",
        "row",
        *(["killed", "by", found] if found else ["survived"]),
    ]
    with pytest.raises(SystemExit):
        mutations.main(["no such"])
