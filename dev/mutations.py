"""Break the engine on purpose, one line at a time, and see whether the default tests notice.

python -m dev.mutations             # all of them, some minutes
python -m dev.mutations "wrong row" "stale stage"

Each mutation is made in a copy of the checkout. Exit code 1 if one survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAWS = "tests/patches/test_laws.py"
SKIPPED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


@dataclass(frozen=True)
class Mutation:
    """One line of the engine, and what it is made of."""

    name: str
    file: str
    old: str
    """Found exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest: where the mistake has to be noticed."""

    def applied(self, text: str) -> str:
        """The file with the mistake.

        Raises:
            LookupError: the line is not there, or not alone.
        """
        if text.count(self.old) != 1:
            raise LookupError(f"{self.name}: {self.file} has {text.count(self.old)} x {self.old!r}")
        return text.replace(self.old, self.new)


MUTATIONS = (
    Mutation(
        "dropped mask",
        "patches/sequence/packing.py",
        "closed = ~valid[:, None, None, :]",
        "closed = torch.zeros_like(valid[:, None, None, :])",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "flipped comparison",
        "patches/sequence/packing.py",
        "causal = keys[:, None, :] <= rows[:, :, None] + first_row",
        "causal = keys[:, None, :] >= rows[:, :, None] + first_row",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "skipped undo",
        "patches/hooks/attachments.py",
        "            hooks.pop(number, None)",
        "            hooks.get(number)",
        ("tests/patches/test_engine.py", "-k", "law_5"),
    ),
    Mutation(
        "unmoved slot",
        "patches/sequence/spans.py",
        "self.slots, self.index = slot[self.slots[places]], self.index[places]",
        "self.slots, self.index = self.slots[places], self.index[places]",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "ungathered rotary",
        "patches/sequence/layer_arguments.py",
        "return tuple(take_all(rotary, index))",
        "return tuple(x[:, : index.shape[1]] for x in rotary)",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "wrong row",
        "patches/decoder/prompt_rows.py",
        "embeds[image.row, columns] = ",
        "embeds[0, columns] = ",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "lost second image",
        "patches/sequence/placeholders.py",
        "        located += first\n",
        "        located += first[:1]\n",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "wrong cut layer",
        "patches/sequence/stage_layout.py",
        "span.trace.cuts[layer] = span.index",
        "span.trace.cuts[layer + 1] = span.index",
        (LAWS, "-k", "law_2"),
    ),
    Mutation(
        "wrong ranking layer",
        "patches/decoder/layer_attention.py",
        "layer, ran = self.layers[number], number < self.layer",
        "layer, ran = self.layers[self.layer], number < self.layer",
        (LAWS, "-k", "law_6"),
    ),
    Mutation(
        "stale stage",
        "patches/sequence/stage_layout.py",
        "return layer in self.cuts or (self.state is not None and layer in self.state.stages)",
        "return layer in self.cuts",
        (LAWS, "-k", "law_3"),
    ),
    Mutation(
        "wrong spans",
        "patches/sequence/placeholders.py",
        "return cls(row, pieces, 0, layout, placeholders[visual], separators, placeholders)",
        "return cls(row, pieces, 0, layout, placeholders[visual] - 1, separators, placeholders)",
        (LAWS, "-k", "law_2"),
    ),
)


def noticed(mutation: Mutation, copy: Path) -> str | None:
    """The test that fails with the mistake and not without, None if none does.

    Args:
        mutation: to be made, and undone after.
        copy: of the checkout.

    Raises:
        LookupError: the line is not there.
        RuntimeError: the tests fail without the mistake, too, or could not run.
    """
    file = copy / mutation.file
    plain = file.read_text(encoding="utf-8")
    file.write_text(mutation.applied(plain), encoding="utf-8")
    try:
        code, output = tested(copy, *mutation.tests)
    finally:
        file.write_text(plain, encoding="utf-8")
    found = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", output, re.MULTILINE)
    if code == 0:
        return None
    if code != 1 or found is None:
        raise RuntimeError(f"{mutation.name}: pytest could not run\n{output[-2000:]}")
    code, output = tested(copy, found[1])
    if code != 0:
        raise RuntimeError(f"{found[1]} fails without any mutation\n{output[-2000:]}")
    return found[1]


def tested(copy: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the default tier, stopped at the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    # No bytecode: a file that is written twice in one second would be taken for unchanged.
    changed = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    done = subprocess.run(
        [*command, *arguments],
        cwd=copy,
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 1 if a mutation survives."""
    parser = argparse.ArgumentParser(prog="python -m dev.mutations", description=__doc__)
    names = [mutation.name for mutation in MUTATIONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    wanted = parser.parse_args(arguments).names or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no mutation {', '.join(unknown)}: give of {', '.join(names)}")
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIPPED)
        for mutation in MUTATIONS:
            if mutation.name in wanted:
                test = noticed(mutation, copy)
                survived += test is None
                told = "survived" if test is None else f"killed by {test}"
                print(f"{mutation.name:20} {told}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
