"""docs/extending.md: its package adds what it says, and a broken one breaks nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.cli import app
from vlmcompress.errors import PlugInError, UntestedModelWarning
from vlmcompress.eval.tasks import registry as tasks
from vlmcompress.laws import references
from vlmcompress.methods import Selector, get_method, list_methods
from vlmcompress.methods.registry import METHODS
from vlmcompress.models import loading
from vlmcompress.patches.families import table
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.registry import PlugIns

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
(SHELL,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
STREET = ROOT / "vlmcompress" / "assets" / "samples" / "street.png"
QUESTION = "what color is the circle ?"


def write_package(folder):
    """The files of the page, and the picture that it mentions."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(STREET, folder / "vlmcompress_parrot")


def write_metadata(folder, package, entries):
    """What an installer leaves of a package: its name and entry points, as lines by group."""
    info = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    groups = [f"[{group}]\n" + "\n".join(lines) for group, lines in entries.items()]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")


def declared():
    """The entry points of the page's pyproject.toml."""
    found = {}
    for group, lines in re.findall(
        r'^\[project\.entry-points\."([\w.]+)"\]\n((?:.+\n)+)', FILES["pyproject.toml"], re.M
    ):
        found[group] = [line.replace('"', "") for line in lines.splitlines()]
    return found


@dataclass(frozen=True)
class FirstRows(Selector):
    """Keeps the first tokens."""

    name = "first-rows"
    summary = "keeps the first"

    def select(self, tokens, count):
        return torch.arange(count)


@pytest.fixture
def fresh(monkeypatch):
    """Registries that have not looked at other packages yet, and forget what they find."""

    def forget():
        for registry in (METHODS, FAMILIES):
            group = registry._plug_ins.group
            monkeypatch.setattr(registry, "_plug_ins", PlugIns(registry.kind, group))
            monkeypatch.setattr(registry, "_plugged", {})
        for module in (tasks, table):
            plug_ins = PlugIns(module.PLUG_INS.kind, module.PLUG_INS.group)
            monkeypatch.setattr(module, "PLUG_INS", plug_ins)

    forget()
    return forget


@pytest.fixture
def parrot(tmp_path, monkeypatch, fresh):
    """The package of the page, as if it were installed."""
    write_package(tmp_path)
    write_metadata(tmp_path, "vlmcompress-parrot", declared())
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget_modules("vlmcompress_parrot")


@pytest.fixture
def offer(tmp_path, monkeypatch, fresh):
    """Install a package that offers something in a group, with some code in its module."""

    def install(package, group, line, code=""):
        folder = tmp_path / package
        write_metadata(folder, package, {group: [line]})
        (folder / f"{package.replace('-', '_')}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        forget_modules(package.replace("-", "_"))
        fresh()

    return install


def forget_modules(package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_page_names_every_group_that_is_read():
    groups = {METHODS._plug_ins.group, FAMILIES._plug_ins.group, tasks.PLUG_INS.group}
    groups.add(table.PLUG_INS.group)
    assert set(declared()) == groups == set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.M))


def test_a_method_of_the_package_is_asked_and_listed(parrot, monkeypatch, tiny_llava):
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: tiny_llava)
    spec = "contrast(power=1.0)"
    result = cli("ask", STREET, QUESTION, "--method", spec, "--budget", "25%", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["report"]
    assert (report["method"], report["images"][0]["after"]) == ("contrast", 36)
    assert get_method("contrast").power == 2.0
    *others, info = list_methods()
    assert (info.name, info.package) == ("contrast", "vlmcompress-parrot")
    assert info.options == {"power": 2.0}
    assert {other.package for other in others} == {None}
    (line,) = [line for line in cli("ls", "methods").output.splitlines() if "contrast" in line]
    assert line.endswith("from the package vlmcompress-parrot")
    assert json.loads(cli("ls", "methods", "--json").output)[-1]["package"] == info.package


def tiny(config_class, model_class):
    """A model like LLaVA with 36 patches a picture, whose placeholder is token 99."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 100}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "llama"}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 4, "image_size": 24, "patch_size": 4, "projection_dim": 16}
    tower |= {"model_type": "clip_vision_model"}
    torch.manual_seed(0)
    config = config_class(vision_config=tower, text_config=text, image_token_index=99)
    model = model_class(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model


def asked(placeholders):
    """A prompt with one picture."""
    ids = torch.tensor([[1, 7, *[99] * placeholders, 5, 8]])
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 24, 24, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.no_grad()
def dropped(model, inputs, method):
    """Logits of the last token, and the report."""
    with pytest.warns(UntestedModelWarning, match="works by its structure") as said:
        compression = vlmcompress.compress(model, method, 9)
    assert len(said) == 1
    with compression:
        short = model(**inputs).logits[:, -1]
    return short, compression.report()


@torch.no_grad()
def masked(model, inputs, columns):
    """Logits of the last token while nobody attends to some columns."""
    parts = ModelParts.of(model)
    keep = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    keep[0, columns] = False
    model.set_attn_implementation("eager")
    keeps = [keep] * len(parts.layers)
    return references.masked(parts, lambda: model(**inputs).logits[:, -1], keeps)


def test_a_made_up_model_type_needs_no_line(parrot):
    from vlmcompress_parrot.birds import KeaConfig, KeaForConditionalGeneration

    model, inputs = tiny(KeaConfig, KeaForConditionalGeneration), asked(36)
    short, report = dropped(model, inputs, "divprune")
    (image,) = report.images
    assert (image.grid, image.after) == ((1, 6, 6), 9)
    gone = [2 + token for token in range(36) if token not in image.kept]
    assert (short - masked(model, inputs, gone)).abs().max() < 1e-4


def test_one_with_newlines_needs_one_line(parrot, monkeypatch):
    from vlmcompress_parrot.birds import KakapoConfig, KakapoForConditionalGeneration

    assert FILES["vlmcompress_parrot/rows.py"].count("\n") == 3  # an import, and the line
    model, inputs = tiny(KakapoConfig, KakapoForConditionalGeneration), asked(42)
    short, report = dropped(model, inputs, FirstRows())
    (image,) = report.images
    assert (image.before, image.kept) == (36, list(range(9)))
    # Tokens 0 to 8 are a row and a half: the newlines of rows 0 and 1 stay, the other four go.
    stay = {*range(6), 6, *range(7, 10), 13}
    gone = [2 + place for place in range(42) if place not in stay]
    right = masked(model, inputs, gone)
    assert (short - right).abs().max() < 1e-4
    without = masked(model, inputs, [*gone, 2 + 6, 2 + 13])
    assert (right - without).abs().max() > 1e-3
    monkeypatch.setattr(table, "PLUG_INS", PlugIns("row", "vlmcompress.nothing"))
    _, report = dropped(model, inputs, "divprune")
    assert report.images[0].before == 42  # newlines would be taken for pieces of the picture


def test_a_broken_row_names_its_package(offer):
    offer("bad-pack", "vlmcompress.rows", "odd = bad_pack:ODD", "ODD = 'row'")
    with pytest.raises(PlugInError, match=r"row 'odd' of the package bad-pack .*must be a Row"):
        table.row_of("odd")
    assert table.row_of("hunyuan_vl").separators == "begin row end"


def test_a_family_of_the_package_is_compressed_and_listed(parrot):
    from vlmcompress_parrot.model import ParrotConfig, ParrotForConditionalGeneration

    model = tiny(ParrotConfig, ParrotForConditionalGeneration)
    ids = torch.tensor([[1, *[99] * 36, 5]])
    with vlmcompress.compress(model, "contrast", 9) as compression, torch.no_grad():
        logits = model(input_ids=ids, pixel_values=torch.randn(1, 3, 24, 24)).logits
    assert logits.shape[1] == 11
    assert compression.report().engaged
    (info,) = [info for info in vlmcompress.list_models() if info.name == "parrot"]
    assert info.classes == ("ParrotForConditionalGeneration",)
    families = json.loads(cli("ls", "models", "--json").output)["families"]
    assert [one["package"] for one in families if one["package"]] == ["vlmcompress-parrot"]
    assert "from the package vlmcompress-parrot" in cli("ls", "models").output


def test_tasks_of_the_package_are_found_by_name(parrot):
    """That `vlmcompress eval` asks their questions is part of the slow test below."""
    signs, squares = tasks.load_tasks(["signs", "squares"])
    (sample,) = signs.samples(None, 0)
    assert (sample.question, signs.score(sample, "Green.")) == (QUESTION, 1)
    assert sample.load()[0].size == (96, 96)
    red, green = squares.samples(2, 0)
    assert (squares.score(red, " red"), squares.score(green, "red")) == (1, 0)
    assert tasks.task_names()[-2:] == ["signs", "squares"]
    with pytest.raises(vlmcompress.VLMCompressError, match=r"did you mean 'signs'\?"):
        tasks.load_tasks(["sign"])


def test_built_in_names_are_found_without_looking_at_packages(fresh, monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: pytest.fail("looked"))
    assert METHODS.get("divprune").name == "divprune"
    assert get_method("divprune").name == "divprune"
    assert FAMILIES.get("llava").name == "llava"
    assert tasks.load_tasks(["pictures"])[0].name == "pictures"


BROKEN = {
    "missing module": ("x = no_such_module:X", "", "ModuleNotFoundError: No module named"),
    "missing class": ("x = bad_pack:Nothing", "", "AttributeError: .*Nothing"),
    "raises": ("x = bad_pack:X", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    "no syntax": ("x = bad_pack:X", "class", "SyntaxError"),
    "no method": ("x = bad_pack:X", "class X: pass", "method 'x' must be a subclass of Method"),
    "abstract": (
        "x = bad_pack:X",
        "from vlmcompress.methods import Selector\nclass X(Selector):\n  name = summary = 'x'",
        "X does not define select$",
    ),
    "no summary": (
        "x = bad_pack:X",
        "from vlmcompress.methods import Selector\nclass X(Selector):\n  name = 'x'\n"
        "  def select(self, tokens, count): ...",
        "X does not define summary$",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_method_is_one_line_and_breaks_nothing_else(offer, kind):
    line, code, reason = BROKEN[kind]
    offer("bad-pack", "vlmcompress.methods", line, code)
    result = cli("ask", STREET, QUESTION, "--method", "x")
    assert result.exit_code == 2
    (said,) = result.stderr.splitlines()
    entry = re.escape(line.partition(" = ")[2])
    start = rf"error: method 'x' of the package bad-pack does not work \(entry point '{entry}'\): "
    assert re.match(start + reason, said), said
    assert METHODS.get("divprune").name == "divprune"
    with pytest.warns(UserWarning, match="method 'x' of the package bad-pack does not work"):
        assert "x" not in {info.name for info in list_methods()}
    with pytest.raises(vlmcompress.VLMCompressError, match=r"unknown method 'y'.* x$|known: .*, x"):
        get_method("y")


def test_a_broken_family_names_its_package(offer):
    offer("bad-pack", "vlmcompress.families", "odd = bad_pack:Odd", "import no_such_module")
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"model_type": "odd"})
    with pytest.raises(PlugInError, match=r"model family 'odd' of the package bad-pack .*no_such"):
        vlmcompress.compress(model, "divprune", "25%")
    with pytest.warns(UserWarning, match="bad-pack"):
        assert "llava" in {info.name for info in vlmcompress.list_models()}


TASK = (
    "class T:\n  name, version, medium = 'other', 1, 'image'\n"
    "  metric, max_new_tokens = 'exact', 4\n"
)
COMPLETE = TASK + "  samples = score = describe = None\n"


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("t = bad_pack:T", TASK, "T does not define samples, score, describe$"),
        ("t = bad_pack:T", COMPLETE, "the task calls itself 'other'$"),
        ("t = bad_pack:T", "T = 'no/such.yaml'", "cannot read 'no/such.yaml'"),
        ("t = bad_pack:T", "T = 'tasks.txt'", "must end in one of"),
        ("t = bad_pack:T", "def T(): ...", "function does not define name"),
    ],
)
def test_a_broken_task_names_its_package(offer, line, code, reason):
    offer("bad-pack", "vlmcompress.tasks", line, code)
    with pytest.raises(PlugInError, match=rf"task 't' of the package bad-pack .*: .*{reason}"):
        tasks.load_tasks(["t"])
    assert tasks.load_tasks(["pictures"])


@pytest.mark.parametrize("name", ["divprune", "aim", "auto"])
def test_a_name_that_is_taken_stays_and_its_package_is_named(offer, name):
    offer("bad-pack", "vlmcompress.methods", f"{name} = bad_pack:X", "raise RuntimeError")
    text = f"method '{name}' of the package bad-pack is not used: vlmcompress has a method of this"
    with pytest.warns(UserWarning, match=text):
        listed = [info.name for info in list_methods()]
    assert listed.count(name) == (name == "divprune")
    assert METHODS.package_of("divprune") is None
    offer("bad-task", "vlmcompress.tasks", "pictures = bad_pack:X")
    with pytest.warns(UserWarning, match="task 'pictures' of the package bad-task is not used"):
        assert tasks.task_names().count("pictures") == 1


def test_two_packages_with_one_name_are_both_named(offer):
    offer("pack-a", "vlmcompress.methods", "x = pack_a:X")
    offer("pack-b", "vlmcompress.methods", "x = pack_b:X")
    with pytest.raises(PlugInError, match=r"'x' is offered by the packages pack-\w and pack-\w: "):
        get_method("x")
    with pytest.warns(UserWarning, match="uninstall all but one"):
        list_methods()


def test_the_commands_of_the_page_parse():
    for name, rest in re.findall(r"^vlmcompress (\w+)(.*)$", SHELL, re.MULTILINE):
        command = typer.main.get_command(app).commands[name]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert set(re.findall(r"(?<!\w)--[\w-]+", rest)) <= known


@pytest.mark.slow
def test_the_commands_of_the_page_run_with_the_package_installed(tmp_path):
    """Really built and installed by pip, into a folder of its own."""
    source, site = tmp_path / "vlmcompress-parrot", tmp_path / "site"
    write_package(source)
    shutil.copy(STREET, tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*pip, "--target", str(site), str(source)], capture_output=True)
    if b"No module named pip" in built.stderr:
        pytest.skip("pip is not installed")
    assert built.returncode == 0, built.stderr
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    commands = [line for line in SHELL.splitlines() if line.startswith("vlmcompress ")]
    assert len(commands) == 3
    for line in commands:
        run = line.replace("vlmcompress", f"'{sys.executable}' -m vlmcompress", 1)
        done = subprocess.run(
            run,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "contrast" in done.stdout, done.stdout
    assert (tmp_path / "results" / "report.md").is_file()
