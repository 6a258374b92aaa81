"""docs/methods.md and the page of each method."""

from dev.pages import committed_results as committed
from dev.pages import methods as methods_page
from dev.pages import methods_repaired
from vlmcompress.methods import list_methods


def test_the_pages_are_up_to_date():
    made = methods_page.pages()
    assert set(methods_page.FOLDER.glob("*.md")) == set(made) - {methods_page.PAGE}
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: run `make readme`"


def test_a_page_has_the_options_and_every_setting_that_was_measured():
    (info,) = (one for one in list_methods() if one.name == "cdpruner")
    text = methods_page.method_page(info, committed.all_results())
    assert text.startswith("# `cdpruner`\n\n- Paper: [arXiv 2506.10967](https://arxiv.org/abs/")
    for option, value in info.options.items():
        assert f"`{option}={methods_page._value(value)}`" in text
    for line in ("| `cdpruner` |", "| `cdpruner(negate=False)` |", "| `random` |", "| `full` |"):
        assert line in text
    assert "cdpruner(negate=False)+fastv" not in text
    assert "Deviations" in text


def test_the_page_tells_who_is_better_or_worse_than_random(task):
    never = {"method": "never", "budget": "25%", "cannot": "no"}
    own = {"method": "never", "budget": None, "accuracy": 0.5, "target": None}
    own |= {"tokens": {"before": 144.0, "kept": 20.2}}
    lines = methods_page.by_budget({**task, "cases": [*task["cases"], never, own]}).splitlines()
    assert lines[0] == "| method | 25% (36) | 12.5% (18) | default |"
    assert lines[2:] == [
        "| `full` | - | - | 100.0 |",
        "| `text-only` | - | - | 7.1 |",
        "| `random` | 57.1 | - | - |",
        "| `stride` | 64.3 | - | - |",
        "| `pool` | *1.4* ↓ | - | - |",
        "| `downsample` | 50.0 | - | - |",
        "| `divprune` | **100.0** | 90.0 | - |",
        "| `vispruner` | 60.0 (40.4) | - | - |",
        "| `scope` | *14.3* ↓ | - | - |",
        "| `divprune+fastv` | - | 80.0 | - |",
        "| `never` | - | - | 50.0 (20.2) |",
    ]
    assert methods_page.losers(task, "random") == (
        "- **Lose to `random`**: `scope` (at 25%), `pool` (at 25%)."
    )
    loses = methods_page.losers(task, "stride")
    assert loses.startswith("- **Lose to `stride`**: ")
    assert "`downsample` (at 25%)" in loses
    assert "`vispruner`" not in loses
    some = {"budgets": [{"budget": b, "worse_than_stride": ["a"]} for b in ("50%", "25%")]}
    assert methods_page.losers(some, "stride") == "- **Lose to `stride`**: `a` (at 50%, 25%)."
    none = {"budgets": [{"budget": "50%", "worse_than_random": []}]}
    assert methods_page.losers(none, "random") == "- No method is shown to lose to `random`."


def scored(method, scores, budget="25%"):
    right = sum(map(int, scores)) / len(scores)
    return {"method": method, "budget": budget, "accuracy": right, "scores": scores}


def test_what_a_modifier_does_is_told_pair_by_pair(monkeypatch):
    """15 : 1 of 20 is p = .0005, and .0016 of three pairs; 2 : 1 and 0 : 4 are chance."""
    plain = "1" + "0" * 15 + "1111"
    cases = [
        scored("divprune", plain),
        scored("restore(divprune)", "0" + "1" * 15 + "1111"),
        scored("restore(divprune, merge=False)", "0" + "11" + "0" * 13 + "1111"),
        scored("scope", plain),
        scored("restore(scope)", "1" + "0" * 15 + "0000"),
        scored("restore(stride)", plain),
        scored("restore(divprune)", plain, None),
        {"method": "restore(scope)", "budget": "12.5%", "cannot": "too few"},
    ]
    task = {"cases": cases, "budgets": [{"budget": "25%"}, {"budget": "12.5%"}], "scored": 20}
    results = {"tiny-qwen": {"tasks": {"pictures": task}}}
    monkeypatch.setattr(committed, "all_results", lambda folder: results)
    text = methods_repaired.repaired()
    assert "Of 3 pairs\n1 are better and 0 worse." in text
    assert "### `tiny-qwen`, 20 questions of `pictures`" in text
    assert text.strip().splitlines()[-5:] == [
        "| method | 25% | 12.5% |",
        "| --- | --- | --- |",
        "| `restore(divprune)` | 25.0 → **95.0** (15 : 1) | - |",
        "| `restore(divprune, merge=False)` | 25.0 → 30.0 (2 : 1) | - |",
        "| `restore(scope)` | 25.0 → 5.0 (0 : 4) | - |",
    ]
    cases[1]["scores"], cases[0]["scores"] = cases[0]["scores"], cases[1]["scores"]
    cases[1]["accuracy"], cases[0]["accuracy"] = cases[0]["accuracy"], cases[1]["accuracy"]
    assert "| `restore(divprune)` | 95.0 → *25.0* ↓ (1 : 15) | - |" in methods_repaired.repaired()


def test_the_paper_of_several_stages_is_on_the_page_of_its_first():
    assert methods_page._of("vscan-merge", "vscan")
    assert not methods_page._of("vscan-prune", "vscan")
    assert methods_page._of("vscan-prune", "vscan-prune(k=3)")
    assert not methods_page._of("vscan-merge", "vscan-merge+fastv")
