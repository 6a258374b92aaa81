"""Names that the shell completes: methods, models and tasks."""

from __future__ import annotations


def methods(incomplete: str) -> list[str]:
    """Methods that go on from what was typed, also behind a plus."""
    from vlmcompress.defaults import AUTO
    from vlmcompress.methods.registry import METHODS

    return _behind(incomplete, "+", [AUTO, *METHODS.names()])


def method_lists(incomplete: str) -> list[str]:
    """The same behind a comma or a plus."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + found for found in methods(last)]


def models(incomplete: str) -> list[str]:
    """Built-in models; a shell completes folders by itself."""
    from vlmcompress.models.names import BUILT_IN

    return _behind(incomplete, "\0", list(BUILT_IN))


def families(incomplete: str) -> list[str]:
    """Model types that are served."""
    from vlmcompress.patches.families.standing import known_types

    return _behind(incomplete, "\0", list(known_types()))


def tasks(incomplete: str) -> list[str]:
    """Tasks and the kinds of their questions, behind a comma, too."""
    from vlmcompress.eval.tasks.registry import task_names

    return _behind(incomplete, ",", task_names())


def _behind(incomplete: str, joint: str, names: list[str]) -> list[str]:
    """Whole words for what was typed: only what stands behind the last joint goes on."""
    before, found, last = incomplete.rpartition(joint)
    return [before + found + name for name in names if name.startswith(last)]
